"""The objective of a comparison: the effect of an edit and its drift."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import Direction, Record
from retouch.task.sampling import find_direction

T = TypeVar("T")

DRIFT = "kl_per_token"


@dataclass(frozen=True)
class Objective:
    """The two metrics that methods are compared and tuned by.

    Attributes:
        effect: the metric of the edit's effect.
        better: whether the direction increases the effect's metric or decreases it.
        drift: KL(base || edited) in nats a token; lower is better.
    """

    effect: MetricSpec
    better: Literal["higher", "lower"]
    drift: MetricSpec

    def gain(self, value: float) -> float:
        """A value in [0, 1] of the effect's metric as a number in [0, 1], higher is better."""
        return value if self.better == "higher" else 1.0 - value


def metric_key(metric: MetricSpec | Record) -> str:
    """The key of a metric within a comparison: `suite/metric`."""
    return f"{metric.suite}/{metric.metric}"


def find_objective(concept: Concept, direction: Direction) -> Objective:
    """The effect that the concept declares for the direction, and its drift metric.

    Raises:
        DataError: the concept lacks the direction, its effect or the drift metric.
    """
    spec = find_direction(concept, direction)
    metrics = {one.metric: one for one in reversed(concept.metrics)}  # the first of a name
    if spec.effect not in metrics:
        raise DataError(
            f"The concept {concept.name} declares no metric for the effect of the direction "
            f"`{direction}`.",
            f"Set `directions.{direction}.effect` in the pack's concept.yaml.",
            code="effect-missing",
        )
    if DRIFT not in metrics:
        raise DataError(
            f"The concept {concept.name} has no metric `{DRIFT}`.",
            "Add `add_ordinary: true` to its concept.yaml.",
            code="drift-metric-missing",
        )
    return Objective(metrics[spec.effect], spec.effect_better, metrics[DRIFT])


def pareto_front(items: Iterable[T], point: Callable[[T], tuple[float, float]]) -> list[T]:
    """The items on the Pareto front, in the order of their drift.

    `point` gives drift and effect of an item: less drift and more effect are better.
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (point(item)[0], -point(item)[1])):
        if not front or point(item)[1] > point(front[-1])[1]:
            front.append(item)
    return front
