from __future__ import annotations

from typing import Any

import pytest

from helpers.tiny_edit import build_training, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.core.errors import ConfigError
from retouch.representations.patching import Patching
from retouch.task.layers import select_layers


@pytest.mark.parametrize(
    ("layers", "code", "value"),
    [
        ({"discriminator.layers": (42,)}, "layer-missing", "42"),
        ({"lora.layers_to_transform": (-1,)}, "layer-missing", "-1"),
        ({"lora.layers_to_transform": ()}, "layer-missing", "no layer"),
        ({"lora.layers_to_transform": (2,)}, "layer-not-trained", "layer 2"),
    ],
)
def test_layers_that_cannot_be_edited_are_named(
    layers: dict[str, Any], code: str, value: str
) -> None:
    overrides = {"discriminator.layers": (1,), "lora.layers_to_transform": (1,), **layers}
    with pytest.raises(ConfigError, match=value) as error:
        build_training(tiny_editable(), tiny_config(overrides))
    assert error.value.code == code


def test_the_critical_layer_is_read_and_layers_below_it_are_adapted() -> None:
    layers = select_layers(Patching((0.1, 0.2, 0.5, 0.95, 0.99, 1.0), 8), 6)
    assert layers.read == (3, 4)
    assert layers.adapted == (1, 2, 3, 4)
    assert "95%" in layers.reason


def test_without_pairs_the_middle_is_read() -> None:
    assert select_layers(None, 8).read == (4, 5)
    assert select_layers(None, 1).read == (0,)


def test_given_layers_are_sorted_and_may_be_above_with_a_loss_at_the_logits() -> None:
    layers = select_layers(None, 8, adapted=(6, 5), read=(3, 2), logits=True)
    assert (layers.adapted, layers.read) == ((5, 6), (2, 3))
