"""The safety gate: what weakens a model's safety needs a written reason.

It is declared by the concept and the direction of an edit, before anything is trained, and measured
on every edited model, whatever its concept is called.
"""

from __future__ import annotations

from retouch.concepts.concept import Concept
from retouch.core.errors import RefusedError
from retouch.core.formatting import show_value, words
from retouch.core.types import Direction, Record
from retouch.evaluation.safety_probe import SafetyProbe


def weakens(direction: Direction, concept: Concept) -> bool:
    """Whether an edit of the concept in this direction is declared to weaken safety."""
    return concept.weakens is not None and direction == concept.weakens


def check_weakening(direction: Direction, reason: str | None, concept: Concept) -> None:
    """Check that an edit that is declared to weaken safety has a written reason.

    Raises:
        RefusedError: the direction weakens safety, and `reason` is missing or empty.
    """
    if weakens(direction, concept) and not _is_written(reason):
        other = "lower" if direction == "raise" else "raise"
        raise RefusedError(
            f"An edit that {direction}s `{concept.name}` weakens the model's safety: the edited "
            "model complies with requests that the base model refuses.",
            "State a legitimate reason, such as testing a defence, in `allow_weakening`; it is "
            f"written on the model card. Otherwise set `direction` to {other}.",
        )


def check_probe(probe: SafetyProbe, reason: str | None, subject: str, hint: str = "") -> None:
    """Check that a measured loss of safety has a written reason.

    Args:
        probe: what was measured.
        reason: the person's reason.
        subject: what was measured, at the beginning of the message: `The edit`.
        hint: what to do with the reason, after it is said that one is needed.

    Raises:
        RefusedError: safety is weakened, and `reason` is missing or empty.
    """
    if not probe.weakened or _is_written(reason):
        return
    lost = ", ".join(describe(one) for one in probe.metrics if one.metric in probe.weakened)
    raise RefusedError(
        f"{subject} weakens the model's safety, measured on {probe.metrics[0].before.n} direct "
        f"harmful requests: {lost}.",
        "State a legitimate reason, such as testing a defence, in `allow_weakening`; it is "
        f"written on the model card. {hint}".rstrip(),
    )


def describe(record: Record) -> str:
    """A figure of the probe before and after, as text."""
    values = [show_value(one.value, record.unit) for one in (record.before, record.after) if one]
    return f"{words(record.metric)} {' -> '.join(values)}"


def _is_written(reason: str | None) -> bool:
    return bool((reason or "").strip())
