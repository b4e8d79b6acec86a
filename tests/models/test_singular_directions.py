from __future__ import annotations

import torch

from retouch.models.singular_directions import lora_pairs, rotate, stripped

A, B = "x.lora_A.default.weight", "x.lora_B.default.weight"


def factors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (4, 20), B: (10, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def update(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return weights[B] @ weights[A]


def test_rotated_factors_are_the_decomposition_of_the_same_update() -> None:
    weights, average = factors(0), factors(1)
    expected, expected_average = update(weights), update(average)
    assert list(lora_pairs(weights)) == [(A, B)]
    rotate(weights, average)
    assert torch.allclose(update(weights), expected, atol=1e-4)
    assert torch.allclose(update(average), expected_average, atol=1e-4)
    gram = weights[A] @ weights[A].T
    assert torch.allclose(gram, gram[0, 0] * torch.eye(4), atol=1e-3)
    sizes = weights[B].norm(dim=0) * gram[0, 0].sqrt()
    assert torch.allclose(sizes, torch.linalg.svdvals(expected)[:4], atol=1e-3)


def test_a_new_adapter_can_be_rotated() -> None:
    weights = factors(0)
    weights[B].zero_()
    rotate(weights)
    assert not update(weights).any()
    assert torch.isfinite(weights[A]).all()
    assert torch.linalg.matrix_rank(weights[A]) == 4


def test_leading_directions_are_removed_inside_the_context() -> None:
    weights = factors(0)
    rotate(weights)
    before, sizes = weights[B].clone(), torch.linalg.svdvals(update(weights))
    weights[B].requires_grad_()
    with stripped(weights, 2):
        found = torch.linalg.svdvals(update(weights).detach())
        assert torch.allclose(found[:2], sizes[2:4], atol=1e-3)
        update(weights).sum().backward()
    assert torch.equal(weights[B], before)
    gradient = weights[B].grad
    assert gradient is not None
    assert not gradient[:, :2].any()
    assert gradient[:, 2:].any()
