"""A small concept on disk and methods that take no time: for the comparison and the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retouch.core.errors import DivergedError
from retouch.methods.method import Method, Settings, tunable
from retouch.models.interventions import Steering
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask
from helpers.char_tokenizer import char_editable

PACK = """
name: small
title: A small gap
description: Two groups, two letters.
direction_spec:
  raise: {source: [job], target: [even], hold: [other], effect: letter_gap, effect_better: lower}
settings:
  raise: {retain: 6, response_tokens: 3, rounds: 2}
metrics:
  - {suite: small, metric: letter_gap, labels: [job], scorer: gap, unit: probability,
     better: lower, choices: [x, y], groups: [m, f]}
  - {suite: small, metric: kept, labels: [other], scorer: correct, better: higher}
  - {suite: capability, metric: task_accuracy, labels: [other], scorer: correct, better: higher}
  - {suite: drift, metric: kl_per_token, labels: [other], scorer: kl_tokens, unit: nats a token,
     better: lower}
"""


def small_concept(folder: Path) -> str:
    """Write the pack; its path."""
    folder.mkdir()
    (folder / "concept.yaml").write_text(PACK)
    for split in ("train", "validation", "test"):
        rows: list[dict[str, Any]] = []
        for i in range(6):
            group = "mf"[i % 2]
            rows.append({"prompt": f"{split} {group}{i}", "label": "job", "group": group})
            rows.append({"prompt": f"{split} e{i}", "label": "even"})
            rows.append({"prompt": f"{split} o{i}", "label": "other", "accept": ["q"]})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


class PushSettings(Settings):
    push: float = tunable(0.1, low=0.01, high=3.0, log=True, description="how far")
    layer: int = tunable(1, low=0, high=3, description="where")
    both: bool = tunable(False, description="at two blocks")


class Push(Method):
    """Push the states along a fixed direction; without labels enough it falls apart."""

    id = "steering"
    title = "Push"
    source = ""
    settings = PushSettings
    applied: list[tuple[Any, int]]
    fails: Callable[[Any, EditTask], bool]

    def __init__(self, fails: Callable[[Any, EditTask], bool]) -> None:
        self.applied, self.fails = [], fails

    def apply(self, editable: EditableModel, task: EditTask, settings: Any, progress: Any) -> None:
        self.applied.append((settings, task.config.seed))
        if self.fails(settings, task):
            raise DivergedError("It fell apart.", "Push less.")
        generator = torch.Generator().manual_seed(task.config.seed)
        vector = settings.push * torch.randn(32, generator=generator)
        blocks = {settings.layer, 3} if settings.both else {settings.layer}
        editable.intervene(Steering(dict.fromkeys(sorted(blocks), vector)))


class Bare(Method):
    """No edit."""

    id = "none"
    title = "No edit"
    source = ""

    def apply(self, editable: EditableModel, task: EditTask, settings: Any, progress: Any) -> None:
        pass


def put_methods(
    patch: pytest.MonkeyPatch, fails: Callable[[Any, EditTask], bool] = lambda settings, task: False
) -> Push:
    """Let `retouch` and `steering` be the push, and `none` nothing."""
    push = Push(fails)
    made: dict[str, Method] = {"none": Bare(), "steering": push, "retouch": push}
    patch.setattr(catalog, "get_method", made.__getitem__)
    return push


def model() -> EditableModel:
    return char_editable()
