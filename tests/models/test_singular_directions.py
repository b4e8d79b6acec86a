from __future__ import annotations

import pytest
import torch

from retouch.models.singular_directions import leading_directions, lora_pairs, stripped

A, B = "x.lora_A.default.weight", "x.lora_B.default.weight"


def factors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (4, 20), B: (10, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def update(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return weights[B] @ weights[A]


def test_leading_directions_are_those_of_the_update() -> None:
    weights = factors(0)
    assert list(lora_pairs(weights)) == [(A, B)]
    expected = torch.linalg.svd(update(weights)).U[:, :2]
    found = leading_directions(weights[A], weights[B], 2)
    assert torch.allclose((expected.T @ found).abs(), torch.eye(2), atol=1e-4)


def test_they_are_removed_inside_the_context() -> None:
    weights = factors(0)
    before, sizes = weights[B].clone(), torch.linalg.svdvals(update(weights))
    with stripped(weights, 2):
        found = torch.linalg.svdvals(update(weights))
        assert torch.allclose(found[:2], sizes[2:4], atol=1e-3)
    assert torch.equal(weights[B], before)
    with stripped(weights, 0):
        assert torch.allclose(weights[B], before)


@pytest.mark.parametrize("r", [4, 30])
def test_all_directions_of_any_rank_can_be_removed(r: int) -> None:
    weights = {A: torch.randn(r, 20), B: torch.randn(10, r)}
    with stripped(weights, r):
        assert torch.allclose(update(weights), torch.zeros(10, 20), atol=1e-3)
    weights[B].zero_()  # a new adapter
    with stripped(weights, 1):
        assert not update(weights).any()
