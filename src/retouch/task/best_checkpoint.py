"""Keep the best adapter weights of a training, as validation ranks them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from retouch.task.validation import ValidationResult

Weights = Mapping[str, torch.nn.Parameter]
Values = Mapping[str, torch.Tensor]


class BestCheckpoint:
    """The weights with the best score within the limits; without any, those closest to them.

    Attributes:
        values: the kept weights by name; empty before the first.
        score: their validation score.
        excess: how far they are over the limits: the largest ratio of a value to its limit, at
            least 1; 1 within both.
    """

    def __init__(
        self,
        max_drift: float,
        *,
        max_change: float = 1.0,
        min_improvement: float = 0.0,
        slack: float = 1.0,
    ) -> None:
        """Set the rule.

        Args:
            max_drift: nats a token.
            max_change: of `ValidationResult.retain_change`.
            min_improvement: scores that are higher by no more than this are not better.
            slack: weights up to so many times over the limits count as within them.
        """
        self._max_drift, self._max_change = max_drift, max_change
        self._min_improvement, self._slack = min_improvement, slack
        self.values: dict[str, torch.Tensor] = {}
        self.score = float("-inf")
        self.excess = float("inf")

    @property
    def within(self) -> bool:
        """Whether the kept weights are within the limits and the slack."""
        return self.excess <= self._slack

    def is_within(self, result: ValidationResult) -> bool:
        """Whether a validation is within the limits and the slack."""
        return self.excess_of(result) <= self._slack

    def excess_of(self, result: ValidationResult) -> float:
        """How far a validation is over the limits, as for `excess`."""
        change = result.retain_change / self._max_change if self._max_change else 0.0
        return max(1.0, result.drift / self._max_drift, change)

    def update(
        self, result: ValidationResult, values: Values, *, prefer_latest: bool = False
    ) -> bool:
        """Keep weights if they are better than the kept ones, and say whether they are.

        Args:
            result: their validation.
            values: the weights.
            prefer_latest: treat them as better whatever their score.
        """
        excess = self.excess_of(result)
        if not self.is_within(result):
            better = excess < self.excess
        else:
            higher = result.score > self.score + self._min_improvement
            better = not self.within or higher or prefer_latest
        if better:
            self.values = {name: value.detach().clone() for name, value in values.items()}
            self.score, self.excess = result.score, excess
        return better

    def restore(self, weights: Weights) -> None:
        """Copy the kept values into the weights."""
        copy_into(weights, self.values)


@torch.no_grad()
def copy_into(weights: Weights, values: Values) -> None:
    """Copy values into the weights of the same names."""
    for name, parameter in weights.items():
        parameter.copy_(values[name])
