"""Packs on disk: a built-in `ordinary` and a concept `colour` that uses it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from retouch.core.types import SPLITS

ORDINARY: dict[str, Any] = {
    "name": "ordinary",
    "title": "Tasks",
    "description": "Tasks.",
    "metrics": [{"suite": "drift", "metric": "kl", "labels": ["ordinary"], "scorer": "kl_tokens"}],
}
COLOUR: dict[str, Any] = {
    "name": "colour",
    "title": "Colour",
    "description": "Red or blue.",
    "uses": ["ordinary"],
    "directions": {"raise": {"source": ["red"], "target": ["blue"], "retain": ["ordinary"]}},
    "settings": {"raise": {"train": {"rounds": 3, "learning_rate": "0.001"}}},
    "metrics": [
        {"suite": "colour", "metric": "red", "labels": ["red"], "scorer": "answer"},
        {"suite": "drift", "metric": "kl", "labels": ["red"], "scorer": "kl_tokens"},
    ],
}


def write_pack(folder: Path, pack: dict[str, Any], labels: Iterable[str]) -> Path:
    """Write a pack with one example of each label in each split."""
    folder.mkdir(parents=True)
    (folder / "concept.yaml").write_text(yaml.safe_dump(pack))
    for split in SPLITS:
        rows = [{"prompt": f"{split} {label}", "label": label} for label in labels]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_packs(folder: Path) -> Path:
    """Write the packs `ordinary` and `colour`."""
    write_pack(folder / "ordinary", ORDINARY, ["ordinary"])
    write_pack(folder / "colour", COLOUR, ["red", "blue"])
    return folder
