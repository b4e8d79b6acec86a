"""A trial of a search, and the rule by which one of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

GUARD = 0.01  # nats a token
CLOSE = 0.01  # effects nearer than this count as the same


@dataclass(frozen=True)
class Trial:
    """One try of a method's settings.

    Attributes:
        number: from 0, which is the defaults.
        settings: what the search drew.
        effect: on the validation split, in [0, 1], more is better; None where it failed.
        drift: on the validation split, nats a token; None where it failed.
        seconds: of applying and measuring.
        state: whether it came to its end.
        reason: why it failed.
    """

    number: int
    settings: Mapping[str, Any]
    effect: float | None
    drift: float | None
    seconds: float
    state: Literal["complete", "failed"] = "complete"
    reason: str = ""


def choose(trials: Sequence[Trial], guard: float = GUARD) -> Trial | None:
    """The one rule by which settings are chosen, for every method.

    Among the trials whose drift is within the guard, those count whose effect is within 0.01 of
    the best of them; of these the one with the lowest drift is chosen, the earliest of equals. If
    the best within the guard has not half of the effect that the method can have at all, the guard
    is no fair choice for it: then the same is done among all trials, and the drift is what it is.
    None if all failed.
    """
    done = _done(trials)
    if not done:
        return None
    within = [one for one in done if one[2] <= guard]
    most = max(effect for _, effect, _ in done)
    fair = within if any(effect >= most / 2 for _, effect, _ in within) else done
    best = max(effect for _, effect, _ in fair)
    # The least bit more, since 0.99 is not within 0.01 of 1.0 in floating point.
    close = [one for one in fair if one[1] >= best - CLOSE - 1e-9]
    return min(close, key=lambda one: one[2])[0]


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto pareto_front, from the lowest drift on: no other trial has more effect and less drift."""
    best, found = float("-inf"), []
    for trial, effect, _ in sorted(_done(trials), key=lambda one: (one[2], -one[1])):
        if effect > best:
            best = effect
            found.append(trial)
    return found


def _done(trials: Sequence[Trial]) -> list[tuple[Trial, float, float]]:
    return [
        (trial, trial.effect, trial.drift)
        for trial in trials
        if trial.effect is not None and trial.drift is not None
    ]
