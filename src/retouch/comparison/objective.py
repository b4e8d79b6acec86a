"""What a comparison is about: the effect that is wanted, and the drift that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import Direction

DRIFT = "kl_per_token"


@dataclass(frozen=True)
class Objective:
    """The two metrics that pull against each other.

    Attributes:
        effect: how far the direction went.
        better: whether the direction raises the effect or lowers it.
        drift: from the base, in nats a token.
    """

    effect: MetricSpec
    better: Literal["higher", "lower"]
    drift: MetricSpec

    def gain(self, value: float) -> float:
        """A value of the effect as a number in [0, 1] of which more is better."""
        return value if self.better == "higher" else 1.0 - value


def find_objective(concept: Concept, direction: Direction) -> Objective:
    """The effect that the concept names for the direction, and its metric of drift.

    Raises:
        DataError: the concept lacks the direction, its effect or the metric of drift.
    """
    if direction not in concept.directions:
        raise DataError(
            f"The concept {concept.name} has no side to {direction}.",
            "It serves other concepts as their retain set; take one of those.",
        )
    direction_spec = concept.directions[direction]
    effect = next((spec for spec in concept.metrics if spec.metric == direction_spec.effect), None)
    if effect is None:
        raise DataError(
            f"The concept {concept.name} does not progress which metric is the effect of "
            f"`--direction {direction}`.",
            f"Name it in a pack's concept.yaml: `direction_spec.{direction}.effect`.",
        )
    drift = next((spec for spec in concept.metrics if spec.metric == DRIFT), None)
    if drift is None:
        raise DataError(
            f"The concept {concept.name} has no metric `{DRIFT}`.",
            "Let its concept.yaml progress `uses: [capability]`.",
        )
    return Objective(effect, direction_spec.effect_better, drift)
