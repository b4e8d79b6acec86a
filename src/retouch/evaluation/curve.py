"""A metric as a function of a number: training steps, an edit's strength."""

from __future__ import annotations

from dataclasses import dataclass

from retouch.core.types import Better, Score


@dataclass(frozen=True)
class Curve:
    """One metric at several points.

    Attributes:
        suite: the family of metrics.
        metric: its name.
        unit: the unit of the scores.
        better: which way is better.
        along: the variable that the metric is a function of, such as `steps` or `strength`.
        points: values of that variable in ascending order, each with the score there.
    """

    suite: str
    metric: str
    unit: str
    better: Better
    along: str
    points: tuple[tuple[float, Score], ...]
