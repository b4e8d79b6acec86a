from __future__ import annotations

import pytest
import torch

from retouch.core.config import DiscriminatorConfig
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
