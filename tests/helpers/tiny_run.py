"""A whole edit of the tiny model by the command line: its inputs, and what two runs share."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from helpers.tiny_edit import SMALL, tiny_concept
from helpers.tiny_models import save_tiny
from retouch.concepts.concept import Concept, MetricSpec
from retouch.concepts.pack import save_pack
from retouch.core.options import nest

# Every stage of an edit: layers are searched, responses generated, a strength is chosen and the
# result is measured.
SETTINGS: dict[str, Any] = {
    **SMALL,
    "lora.layers_to_transform": None,
    "discriminator.layers": None,
    "train.strengths": [0.5, 1.0],
    "train.rounds": 3,
    "train.steps_per_round": 2,
    "data.max_new_tokens": 4,
    "data.max_base_tokens": 4,
    "data.ignore_contrast": True,  # a random model has none
    "evaluation.suites": "concept",
    "evaluation.limit": 4,
    "evaluation.max_new_tokens": 4,
}
TIMES = re.compile(r'"?(seconds|time|[a-z]+_seconds)"?(&#34;)?: "?[^,}\n]+')


def whole_concept() -> Concept:
    """The tiny concept with a metric, and without given source and retain responses."""
    concept = tiny_concept()
    examples = {
        split: tuple(
            one if one.label == "positive" else replace(one, response=None) for one in found
        )
        for split, found in concept.examples.items()
    }
    metric = MetricSpec("tiny", "refusals", ("negative",), "refusal", better="higher")
    directions = {
        name: replace(spec, effect=metric.metric) for name, spec in concept.directions.items()
    }
    return replace(concept, examples=examples, directions=directions, metrics=(metric,), hash="")


def write_inputs(folder: Path, **overrides: Any) -> list[str]:
    """Write model, concept and settings into a folder; the options of an edit with them."""
    save_tiny(folder / "model")
    save_pack(whole_concept(), folder / "tiny")
    values = nest({**SETTINGS, **overrides, "concept": str(folder / "tiny")})
    (folder / "edit.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return [str(folder / "model"), "--config", str(folder / "edit.yaml")]


def results(run: Path) -> dict[str, bytes]:
    """The files of a run by name, without timings and dates; checkpoints and locks are left out."""
    found = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if not file.is_file() or name.startswith("checkpoints/"):
            continue
        content = file.read_bytes()
        if file.suffix != ".safetensors":
            content = TIMES.sub("TIME", content.decode("utf-8")).encode("utf-8")
        found[name] = content
    return found
