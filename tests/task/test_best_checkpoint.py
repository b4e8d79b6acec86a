from __future__ import annotations

import pytest
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


def test_those_closest_to_the_limits_are_kept_until_one_is_within_them() -> None:
    assert kept(BestCheckpoint(0.1), (0, 0.5), (-9, 0.2), (0, 0.3)) == 1
    assert kept(BestCheckpoint(0.1), (0, 0.5), (-9, 0.1), (0, 0.3)) == 1
    assert kept(BestCheckpoint(0.1), (-3, 0.05), (-1, 0.2)) == 0


def test_a_change_of_the_retain_set_is_a_limit_too() -> None:
    checkpoint = BestCheckpoint(0.1, max_change=0.05)
    values = {"w": torch.zeros(1)}
    assert checkpoint.update(ValidationResult(5.0, 0.01, retain_change=0.2), values)
    assert not checkpoint.within
    assert checkpoint.excess == pytest.approx(4.0)
    assert checkpoint.update(ValidationResult(-5.0, 0.01, retain_change=0.05), values)
    assert checkpoint.within
    assert not checkpoint.update(ValidationResult(5.0, 0.01, retain_change=0.06), values)


def test_with_slack_a_higher_score_a_little_over_the_limits_is_kept() -> None:
    scores = (-3, 0.05), (-1, 0.14), (0, 0.16)
    assert kept(BestCheckpoint(0.1, slack=1.5), *scores) == 1
    assert kept(BestCheckpoint(0.1), *scores) == 0
    assert kept(BestCheckpoint(0.1, slack=1.5), (0, 0.3), (-9, 0.2)) == 1


def test_improvements_have_a_minimum_and_the_latest_may_be_preferred() -> None:
    checkpoint = BestCheckpoint(0.1, min_improvement=0.5)
    values = {"w": torch.zeros(1)}
    assert checkpoint.update(ValidationResult(0.0, 0.05), values)
    assert not checkpoint.update(ValidationResult(0.5, 0.05), values)
    assert checkpoint.update(ValidationResult(-1.0, 0.05), values, prefer_latest=True)
    assert not checkpoint.update(ValidationResult(9.0, 0.2), values, prefer_latest=True)


def test_kept_values_are_copies() -> None:
    checkpoint, value = BestCheckpoint(0.1), torch.zeros(1)
    checkpoint.update(ValidationResult(0.0, 0.0), {"w": value})
    value.fill_(5.0)
    assert checkpoint.values["w"].item() == 0
