"""A tiny task for the methods, and methods with small settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from helpers.tiny_edit import tiny_concept, tiny_config
from retouch.concepts.concept import Concept
from retouch.core.types import no_progress
from retouch.methods.registry import get_method
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask, build_task

# The source's responses are the longest.
RESPONSES = {"negative": "w5 w6 w7", "positive": "w8 w9", "retain": "w10 w11"}
ARE = ("are-original", "are-original-source")


def method_concept(pairs: bool = True) -> Concept:
    """`tiny_concept` with responses of different lengths."""
    concept = tiny_concept(pairs)
    examples = {
        split: tuple(replace(one, response=RESPONSES[one.label]) for one in every)
        for split, every in concept.examples.items()
    }
    return replace(concept, examples=examples)


def method_task(
    editable: EditableModel, pairs: bool = True, overrides: Mapping[str, Any] | None = None
) -> EditTask:
    """A task that adapts and reads layers 1 and 2; `overrides` by dotted path."""
    config = tiny_config({"discriminator.layers": (1, 2), **(overrides or {})})
    return build_task(
        editable, method_concept(pairs), "raise", config.seed, config.data, config.method
    )


def method_settings(id: str, **overrides: Any) -> Any:
    """Settings of a LoRA method or of ARE for a short training."""
    small: dict[str, Any] = {
        "max_steps": 24,
        "batch_size": 8,
        "num_validations": 2,
        "max_drift": 100.0,
        "learning_rate": 5e-3,
    }
    if id in ARE:
        small = {"rounds": 2, "learning_rate": 3e-3, "discriminator_epochs": 5}
    return get_method(id).settings(**(small | overrides))


def apply_method(editable: EditableModel, id: str, task: EditTask, **overrides: Any) -> None:
    """Apply a LoRA method or ARE with `method_settings`."""
    get_method(id).apply(editable, task, method_settings(id, **overrides), no_progress)


def adapter_weights(editable: EditableModel) -> dict[str, torch.Tensor]:
    """Copies of the adapter's weights by name."""
    return {name: p.detach().clone() for name, p in adapters.parameters(editable).items()}
