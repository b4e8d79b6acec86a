"""A metric along something that is turned up: training steps, an adapter's strength, a radius."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retouch.core.types import Better, Score


@dataclass(frozen=True)
class Curve:
    """One metric at several points.

    Attributes:
        suite: the family of metrics.
        metric: its name.
        unit: of the scores.
        better: which way is better.
        along: what is turned up, such as `steps` or `strength`.
        points: where it was measured, in order, and what was found there.
    """

    suite: str
    metric: str
    unit: str
    better: Better
    along: str
    points: tuple[tuple[float, Score], ...]


def from_curve(curve: Curve) -> dict[str, Any]:
    """A curve as plain JSON values."""
    points = [{"at": at, **asdict(score)} for at, score in curve.points]
    return {**{k: v for k, v in vars(curve).items() if k != "points"}, "points": points}
