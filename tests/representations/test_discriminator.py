from __future__ import annotations

import pytest
import torch

from retouch.core.config import DiscriminatorConfig, DiscriminatorObjective
from retouch.representations.discriminator import Discriminators


@pytest.mark.parametrize("hidden_size", [0, 16])
def test_separable_states_are_classified_and_random_ones_are_not(hidden_size: int) -> None:
    torch.manual_seed(0)
    shift = torch.zeros(12)
    shift[3] = 6.0
    states = {0: torch.randn(200, 12)}
    shifted = {0: torch.randn(200, 12) + shift}
    config = DiscriminatorConfig(hidden_size=hidden_size, learning_rate=3e-2)
    discriminators = Discriminators((0,), 12, config, 0)
    discriminators.standardise(states)
    discriminators.fit({0: shifted[0][:150]}, {0: states[0][:150]}, 150)
    assert discriminators.accuracy({0: shifted[0][150:]}, {0: states[0][150:]}) > 0.9
    config = DiscriminatorConfig(hidden_size=hidden_size, learning_rate=1e-2)
    discriminators = Discriminators((0,), 12, config, 0)
    discriminators.fit({0: torch.randn(150, 12)}, {0: torch.randn(150, 12)}, 60)
    assert discriminators.accuracy({0: torch.randn(500, 12)}, {0: torch.randn(500, 12)}) < 0.6


def test_state_dict_names_layer_and_parameter() -> None:
    discriminators = Discriminators((1, 3), 12, DiscriminatorConfig(hidden_size=4), 0)
    names = discriminators.state_dict().keys()
    assert {name.partition(".")[0] for name in names} == {"1", "3"}
    assert "1.body.0.weight" in names


@pytest.mark.parametrize(
    ("objective", "penalty", "spectral_norm"),
    [
        ("relativistic", 1.0, False),
        ("wasserstein", 1.0, True),
        ("feature-matching", 0.0, False),
        ("standard", 0.1, True),
    ],
)
def test_the_generator_follows_each_objective_to_the_target_states(
    objective: DiscriminatorObjective, penalty: float, spectral_norm: bool
) -> None:
    torch.manual_seed(0)
    shift = torch.zeros(12)
    shift[3] = 4.0
    source, target = torch.randn(200, 12), torch.randn(200, 12) + shift
    config = DiscriminatorConfig(
        hidden_size=16,
        learning_rate=1e-2,
        objective=objective,
        gradient_penalty=penalty,
        spectral_norm=spectral_norm,
    )
    discriminators = Discriminators((0,), 12, config, 0)
    discriminators.standardise({0: torch.cat([source, target])})
    discriminators.fit({0: target}, {0: source}, 60)
    offset = torch.zeros(12, requires_grad=True)
    loss = discriminators.generator_loss(0, source + offset, target, len(source))
    (gradient,) = torch.autograd.grad(loss, offset)
    assert gradient.argmin() == gradient.abs().argmax() == 3
    with torch.no_grad():
        lower = discriminators.generator_loss(0, source + shift / 4, target, len(source))
    assert float(lower) < float(loss.detach())


def test_a_gradient_penalty_bounds_the_slope_of_a_discriminator() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(200, 12) - 1, torch.randn(200, 12) + 1
    slopes = []
    for penalty in (0.0, 10.0):
        config = DiscriminatorConfig(
            hidden_size=16,
            learning_rate=1e-2,
            objective="relativistic",
            gradient_penalty=penalty,
        )
        discriminators = Discriminators((0,), 12, config, 0)
        discriminators.fit({0: target}, {0: source}, 100)
        states = source.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminators.by_layer[0](states).sum(), states)
        slopes.append(float(gradient.norm(dim=-1).mean()))
    assert slopes[1] < 0.5 * slopes[0]
