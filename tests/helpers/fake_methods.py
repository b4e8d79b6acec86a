"""A small concept pack on disk and methods that run instantly, for tests of the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.char_tokenizer import char_editable
from retouch.core.config import option
from retouch.core.errors import DivergedError
from retouch.core.types import Progress
from retouch.methods import registry
from retouch.methods.method import Method, MethodSettings
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Steering
from retouch.task.task import EditTask

PACK = """
name: small
title: A small gap
description: Two groups, two letters.
directions:
  raise: {source: [job], target: [even], retain: [other], effect: letter_gap, effect_better: lower}
settings:
  raise: {data: {num_retain: 6, max_new_tokens: 3}, train: {rounds: 2}}
metrics:
  - {suite: small, metric: letter_gap, labels: [job], scorer: group_gap, unit: probability,
     better: lower, choices: [x, y], groups: [m, f]}
  - {suite: small, metric: kept, labels: [other], scorer: correct, better: higher}
  - {suite: capability, metric: task_accuracy, labels: [other], scorer: correct, better: higher}
  - {suite: drift, metric: kl_per_token, labels: [other], scorer: kl_tokens, unit: nats a token,
     better: lower}
"""

Fails = Callable[[Any, EditTask], bool]


def small_concept(folder: Path) -> str:
    """Write the pack into a new folder and return its path."""
    folder.mkdir()
    (folder / "concept.yaml").write_text(PACK)
    for split in ("train", "validation", "test"):
        examples: list[dict[str, Any]] = []
        for i in range(6):
            group = "mf"[i % 2]
            examples.append({"prompt": f"{split} {group}{i}", "label": "job", "group": group})
            examples.append({"prompt": f"{split} e{i}", "label": "even"})
            examples.append({"prompt": f"{split} o{i}", "label": "other", "accept": ["q"]})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    return str(folder)


class ShiftSettings(MethodSettings):
    """Settings with a range, a range of integers and a switch."""

    scale: float = option(0.1, "length of the vector", search=(0.01, 3.0), log=True)
    layer: int = option(1, "layer that it is added to", search=(0, 3))
    last_layer: bool = option(False, "add it to the last layer too", choices=(False, True))


class ShiftMethod(Method):
    """Add a random vector, seeded by the task, to the output of a layer.

    Attributes:
        applied: the settings and the task's seed of each call.
        fails: for which settings and tasks the method raises DivergedError.
    """

    id = "steering"
    title = "Shift"
    source = ""
    settings = ShiftSettings

    def __init__(self, fails: Fails) -> None:
        self.applied: list[tuple[Any, int]] = []
        self.fails = fails

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        self.applied.append((settings, task.seed))
        if self.fails(settings, task):
            raise DivergedError("The loss is not finite.", "Lower the scale.")
        generator = torch.Generator().manual_seed(task.seed)
        vector = settings.scale * torch.randn(32, generator=generator)
        layers = {settings.layer, 3} if settings.last_layer else {settings.layer}
        editable.intervene(Steering(dict.fromkeys(sorted(layers), vector)))


class NoEdit(Method):
    """A method that changes nothing."""

    id = "none"
    title = "No edit"
    source = ""

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        pass


def use_fake_methods(
    monkeypatch: pytest.MonkeyPatch, fails: Fails = lambda settings, task: False
) -> ShiftMethod:
    """Make `retouch` and `steering` one ShiftMethod, which is returned, and `none` NoEdit."""
    shift = ShiftMethod(fails)
    methods: dict[str, Method] = {"none": NoEdit(), "steering": shift, "retouch": shift}
    monkeypatch.setattr(registry, "get_method", methods.__getitem__)
    return shift


def model() -> EditableModel:
    """A new tiny model that can process any text."""
    return char_editable()
