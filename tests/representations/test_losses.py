from __future__ import annotations

import pytest
import torch

from retouch.representations.losses import (
    discriminator_loss,
    domain_confusion_loss,
    generator_loss,
    normalized_mse_loss,
    npo_loss,
    sft_loss,
)

LOG_2 = 0.6931


def test_generator_loss_is_minus_the_mean_log_sigmoid() -> None:
    logits = torch.tensor([0.0, 2.0])
    assert generator_loss(logits) == pytest.approx(float(-logits.sigmoid().log().mean()))


def test_discriminator_loss_gives_each_class_half_the_weight() -> None:
    assert discriminator_loss(torch.zeros(3), torch.zeros(5), 0.1) == pytest.approx(LOG_2, 1e-3)
    target, nontarget = torch.tensor([3.0]), torch.tensor([-3.0] * 9)
    assert discriminator_loss(target, nontarget, 0.0) == pytest.approx(
        float(discriminator_loss(target, nontarget[:1], 0.0)), abs=1e-6
    )


def test_domain_confusion_loss_is_symmetric_and_least_at_chance() -> None:
    assert float(domain_confusion_loss(torch.zeros(3))) == pytest.approx(LOG_2, 1e-3)
    positive = domain_confusion_loss(torch.tensor([4.0]))
    assert positive == domain_confusion_loss(torch.tensor([-4.0]))
    assert positive > LOG_2


def test_npo_loss_is_that_of_preferring_anything_else() -> None:
    own, base = torch.tensor([-3.0, -8.0]), torch.tensor([-3.0, -2.0])
    ratio = (own - base).exp()
    expected = (2 / 0.5 * (1 + ratio**0.5).log()).sum() / 7
    assert float(npo_loss(own, base, 0.5, 7)) == pytest.approx(float(expected))
    own.requires_grad_()
    npo_loss(own, base, 0.5, 7).backward()
    assert own.grad is not None
    # An unlikely response is pushed less.
    assert own.grad[0] == pytest.approx(1 / 7)
    assert 0 < own.grad[1] < 0.1 * own.grad[0]


def test_sft_loss_is_the_weighted_mean_of_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 5), torch.tensor([1, 3])
    first, second = -logits.log_softmax(-1)[[0, 1], tokens]
    assert float(sft_loss(logits, tokens)) == pytest.approx(float((first + second) / 2))
    weighted = sft_loss(logits, tokens, torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx(float((3 * first + second) / 4))


def test_normalized_mse_loss_is_relative_to_the_weighted_reference() -> None:
    reference = torch.ones(2, 3)
    assert normalized_mse_loss(reference, reference) == 0
    assert normalized_mse_loss(torch.zeros(2, 3), reference) == 1
    states = torch.tensor([[1.0], [2.0]])
    assert normalized_mse_loss(torch.zeros(2, 1), states, torch.tensor([1.0, 0.0])) == 1
    assert normalized_mse_loss(states, torch.ones(2, 1), torch.tensor([1.0, 3.0])) == 0.75


def test_losses_of_parts_with_the_normalizer_of_the_whole_add_up() -> None:
    torch.manual_seed(0)
    logits, states, reference = torch.randn(6), torch.randn(6, 3), torch.randn(6, 3)
    parts = generator_loss(logits[:2], 6) + generator_loss(logits[2:], 6)
    assert float(parts) == pytest.approx(float(generator_loss(logits)), rel=1e-6)
    norm = reference.pow(2).sum()
    parts = sum(
        normalized_mse_loss(states[part], reference[part], None, norm)
        for part in (slice(2), slice(2, 6))
    )
    assert float(parts) == pytest.approx(float(normalized_mse_loss(states, reference)), rel=1e-6)
