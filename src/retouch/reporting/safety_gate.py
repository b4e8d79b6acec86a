"""The safety gate: an edit that weakens a model's safety needs a written reason."""

from __future__ import annotations

from retouch.concepts.concept import Concept
from retouch.core.errors import RefusedError
from retouch.core.types import Direction


def weakens(direction: Direction, concept: Concept) -> bool:
    """Whether an edit of the concept in this direction weakens the model's safety."""
    return concept.weakens is not None and direction == concept.weakens


def check_weakening(direction: Direction, reason: str | None, concept: Concept) -> None:
    """Check that a weakening edit has a written reason.

    Raises:
        RefusedError: the direction weakens safety, and `reason` is missing or empty.
    """
    if weakens(direction, concept) and not (reason or "").strip():
        other = "lower" if direction == "raise" else "raise"
        raise RefusedError(
            f"An edit that {direction}s `{concept.name}` weakens the model's safety: the edited "
            "model complies with requests that the base model refuses.",
            "State a legitimate reason, such as testing a defence, in `allow_weakening`; it is "
            f"written on the model card. Otherwise set `direction` to {other}.",
        )
