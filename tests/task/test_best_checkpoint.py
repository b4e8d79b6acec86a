from __future__ import annotations

import torch

from retouch.task.best_checkpoint import BestCheckpoint
from retouch.task.validation import ValidationResult


def kept(checkpoint: BestCheckpoint, *results: tuple[float, float]) -> float:
    """The number of the (score, drift) whose weights are kept; -1 if none are."""
    weight = torch.nn.Parameter(torch.full((1,), -1.0))
    for number, (score, drift) in enumerate(results):
        checkpoint.update(ValidationResult(score, drift), {"w": torch.full((1,), float(number))})
    if checkpoint.values:
        checkpoint.restore({"w": weight})
    return weight.item()


def test_the_highest_score_within_the_maximum_drift_is_kept() -> None:
    assert kept(BestCheckpoint(0.1), (-3, 0.05), (-1, 0.09), (-2, 0.01), (0, 0.2)) == 1
    assert kept(BestCheckpoint(0.1), (0, 0.5), (-9, 0.2)) == -1


def test_the_lowest_drift_is_kept_until_one_is_within_the_maximum() -> None:
    def checkpoint() -> BestCheckpoint:
        return BestCheckpoint(0.1, allow_above=True)

    assert kept(checkpoint(), (0, 0.5), (-9, 0.2), (0, 0.3)) == 1
    assert kept(checkpoint(), (0, 0.5), (-9, 0.1), (0, 0.3)) == 1
    assert kept(checkpoint(), (-3, 0.05), (-1, 0.2)) == 0


def test_improvements_have_a_minimum_and_the_latest_may_be_preferred() -> None:
    checkpoint = BestCheckpoint(0.1, min_improvement=0.5)
    values = {"w": torch.zeros(1)}
    assert checkpoint.update(ValidationResult(0.0, 0.05), values)
    assert not checkpoint.update(ValidationResult(0.5, 0.05), values)
    assert checkpoint.update(ValidationResult(-1.0, 0.05), values, prefer_latest=True)
    assert not checkpoint.update(ValidationResult(9.0, 0.2), values, prefer_latest=True)
    assert checkpoint.least_drift == 0.05


def test_kept_values_are_copies() -> None:
    checkpoint, value = BestCheckpoint(0.1), torch.zeros(1)
    checkpoint.update(ValidationResult(0.0, 0.0), {"w": value})
    value.fill_(5.0)
    assert checkpoint.values["w"].item() == 0
