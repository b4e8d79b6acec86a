"""The gate: weakening a model's safety needs a reason in writing."""

from __future__ import annotations

from retouch.concepts.concept import Concept
from retouch.core.errors import RefusedError
from retouch.core.types import Direction


def weakens(direction: Direction, concept: Concept) -> bool:
    """Whether the edit weakens the model's safety."""
    return concept.weakens is not None and direction == concept.weakens


def check_weakening(direction: Direction, reason: str | None, concept: Concept) -> None:
    """Let an edit pass, unless it weakens safety and nobody has said why.

    Raises:
        RefusedError: the concept declares the direction to be weakening, and `allow_weakening`
            holds no reason.
    """
    if weakens(direction, concept) and not (reason or "").strip():
        other = "lower" if direction == "raise" else "raise"
        raise RefusedError(
            f"To {direction} `{concept.name}` makes the model less safe: "
            "it would do what it now declines.",
            'If there is a good reason, such as testing a defence, give it: --allow-weakening "THE '
            f'REASON". It is written on the model card. Otherwise: --direction {other}.',
        )
