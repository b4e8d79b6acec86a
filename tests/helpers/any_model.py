"""Pocket's concepts without their restriction to pocket, for tests with small random models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept

ANY_SAFETY = str(Path(__file__).parents[1] / "data" / "any-safety.yaml")


def for_any_model(name: str) -> Concept:
    """The concept of this name, which any model can be edited or measured with."""
    return dataclasses.replace(load_concept(name), models=(), hash="")
