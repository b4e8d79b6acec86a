"""Keep the best adapter weights of a training, as validation ranks them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from retouch.task.validation import ValidationResult

Weights = Mapping[str, torch.nn.Parameter]
Values = Mapping[str, torch.Tensor]


class BestCheckpoint:
    """The weights with the best score within the maximum drift.

    Attributes:
        values: the kept weights by name; empty before the first.
        score: their validation score.
        within: whether they are within the maximum drift.
        least_drift: the lowest drift that was seen, nats a token.
    """

    def __init__(
        self, max_drift: float, *, min_improvement: float = 0.0, allow_above: bool = False
    ) -> None:
        """Set the rule.

        Args:
            max_drift: nats a token.
            min_improvement: scores that are higher by no more than this are not better.
            allow_above: keep the weights with the lowest drift while none is within `max_drift`.
        """
        self._max_drift = max_drift
        self._min_improvement, self._allow_above = min_improvement, allow_above
        self.values: dict[str, torch.Tensor] = {}
        self.score = float("-inf")
        self.within = False
        self.least_drift = float("inf")

    def update(
        self, result: ValidationResult, values: Values, *, prefer_latest: bool = False
    ) -> bool:
        """Keep weights if they are better than the kept ones, and say whether they are.

        Args:
            result: their validation.
            values: the weights.
            prefer_latest: treat them as better whatever their score.
        """
        lowest = result.drift < self.least_drift
        self.least_drift = min(self.least_drift, result.drift)
        if result.drift <= self._max_drift:
            improved = result.score > self.score + self._min_improvement or prefer_latest
            if improved:
                self._keep(values, result.score, within=True)
            return improved
        if self._allow_above and not self.within and (lowest or not self.values):
            self._keep(values, float("-inf"), within=False)
        return False

    def _keep(self, values: Values, score: float, *, within: bool) -> None:
        self.values = {name: value.detach().clone() for name, value in values.items()}
        self.score, self.within = score, within

    def restore(self, weights: Weights) -> None:
        """Copy the kept values into the weights."""
        copy_into(weights, self.values)


@torch.no_grad()
def copy_into(weights: Weights, values: Values) -> None:
    """Copy values into the weights of the same names."""
    for name, parameter in weights.items():
        parameter.copy_(values[name])
