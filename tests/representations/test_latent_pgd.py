from __future__ import annotations

from dataclasses import replace

import torch

from helpers.tiny_models import tiny_editable
from retouch.models.segment import Segment
from retouch.representations.latent_pgd import latent_pgd
from retouch.representations.losses import normalized_mse_loss

IDS = torch.arange(6, 46).reshape(4, 10)


def test_the_perturbation_is_within_its_ball_and_exceeds_a_random_one() -> None:
    torch.manual_seed(0)
    segment = Segment(tiny_editable(), 1, 2)
    inputs = segment.capture_inputs(IDS)
    reference = torch.randn(4, 10, 32)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        states = segment.forward(replace(inputs, hidden=hidden), (2,))[2]
        return normalized_mse_loss(states, reference)

    delta = latent_pgd(inputs.hidden, loss, 0.3, 4)
    radius = 0.3 * inputs.hidden.norm(dim=-1)
    assert (delta.norm(dim=-1) <= radius * 1.001).all()
    noise = torch.randn(delta.shape)
    noise = noise / noise.norm(dim=-1, keepdim=True) * radius[..., None]
    hidden = inputs.hidden
    assert float(loss(hidden + delta)) > max(float(loss(hidden)), float(loss(hidden + noise)))


def test_masked_positions_are_not_perturbed() -> None:
    hidden, mask = torch.ones(2, 3, 4), torch.tensor([[True, False, True], [False, True, True]])
    delta = latent_pgd(hidden, lambda h: h.sum(), 0.5, 3, mask=mask)
    assert torch.equal(delta.norm(dim=-1) > 0, mask)


def test_keep_best_returns_the_best_perturbation_of_each_row() -> None:
    hidden = torch.ones(2, 1, 4)
    tried: list[torch.Tensor] = []

    def objective(perturbed: torch.Tensor) -> torch.Tensor:
        # Not monotonic along the gradient: large steps overshoot in the first row.
        value = -(perturbed[:, 0, 0] - torch.tensor([1.1, 9.0])).abs()
        tried.append(value.detach())
        return value

    delta = latent_pgd(hidden, objective, 1.0, 3, keep_best=True)
    assert torch.allclose(objective(hidden + delta), torch.stack(tried).max(0).values)
