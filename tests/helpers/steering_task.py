"""A tiny task for the methods that read directions, and a way to apply a method."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.core.types import no_progress
from retouch.methods.registry import get_method
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask, build_task

IDS = torch.arange(6, 46).reshape(4, 10)


@cache
def steering_task(pairs: bool) -> EditTask:
    """A task that reads layer 1; all tiny models have equal weights, so one task serves them."""
    config = tiny_config(
        {
            "lora.layers_to_transform": None,
            "discriminator.layers": (1,),
            "data.num_examples": 6,
            "data.max_new_tokens": 2,
        }
    )
    editable, concept = tiny_editable(), tiny_concept(pairs)
    return build_task(editable, concept, "raise", config.seed, config.data, config.method)


def apply(editable: EditableModel, task: EditTask, id: str, **settings: Any) -> None:
    """Apply a method with the given settings."""
    method = get_method(id)
    method.apply(editable, task, method.settings(**settings), no_progress)


def logits(editable: EditableModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    """The logits of the model as it is now."""
    with torch.no_grad():
        found: torch.Tensor = editable.model(input_ids=ids, use_cache=False).logits
    return found
