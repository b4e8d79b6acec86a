"""Settings of an edit of pocket that takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retouch.core.config import EditConfig
from retouch.core.options import OPTIONS, nest
from retouch.pipeline import configure

SMALL: dict[str, Any] = {
    "data.num_examples": 12,
    "data.num_retain": 12,
    "data.prefill_tokens": 4,
    "data.prefills_per_example": 0.25,
    "data.max_new_tokens": 8,
    "train.rounds": 3,
    "train.steps_per_round": 2,
    "train.batch_size": 6,
    "train.max_drift": 10.0,
    "discriminator.warmup_steps": 5,
    "discriminator.steps_per_round": 2,
    "evaluation.limit": 4,
    "evaluation.max_new_tokens": 8,
}


def small_settings(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The small settings as nested mappings; `overrides` by dotted path."""
    return nest({**SMALL, **(overrides or {})})


def small_config(overrides: Mapping[str, Any] | None = None) -> EditConfig:
    """The small settings as a resolved configuration."""
    return configure(small_settings(overrides))


def small_flags(overrides: Mapping[str, Any] | None = None) -> list[str]:
    """The small settings as options of the command line."""
    flags = {option.path: option.flag for option in OPTIONS}
    values = {**SMALL, **(overrides or {})}
    return [part for path, value in values.items() for part in (flags[path], str(value))]
