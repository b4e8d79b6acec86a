"""Steering, and the directions that it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.steering_task import apply, logits, steering_task
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ConfigError
from retouch.methods.steering import (
    ContrastStates,
    contrast_states,
    layer_at_offset,
    mean_difference,
    mean_response_states,
    normalize,
    reading_direction,
)
from retouch.models.adapters import detach
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import record_activations

SETTINGS: dict[str, dict[str, Any]] = {
    "steering": {"strength": 2.0},
    "reading-vector": {"strength": 2.0},
    "ablation": {"scale": -1.0},
}


def steering_vectors(editable: EditableModel) -> dict[int, torch.Tensor]:
    (steering,) = editable.interventions
    vectors: dict[int, torch.Tensor] = steering.vectors  # type: ignore[attr-defined]
    return vectors


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("id", SETTINGS)
def test_methods_change_the_model_and_detaching_restores_it(id: str, pairs: bool) -> None:
    editable = tiny_editable()
    base = logits(editable)
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    apply(editable, steering_task(pairs), id, **SETTINGS[id])
    assert not torch.allclose(logits(editable), base, atol=1e-3)
    with editable.base_model():
        assert torch.equal(logits(editable), base)
    detach(editable)
    assert not editable.edited
    assert torch.equal(logits(editable), base)
    assert all(torch.equal(p, before[n]) for n, p in editable.model.named_parameters())


@pytest.mark.parametrize(("positions", "layer"), [(1, 0), (1, 3), (2, 1)])
def test_the_steering_vector_is_the_difference_of_means(positions: int, layer: int) -> None:
    editable = tiny_editable()
    task = steering_task(True)

    def mean(chats: Sequence[TokenizedChat]) -> torch.Tensor:
        means = []
        for chat in chats:
            # By hook, since transformers' last hidden state is after the final norm.
            with record_activations(editable, [layer]) as states, torch.no_grad():
                editable.model(input_ids=torch.tensor([chat.ids]), use_cache=False)
            means.append(states[layer][0, chat.start - 1 : chat.start - 1 + positions].mean(0))
        return torch.stack(means).mean(0)

    expected = 0.5 * (mean(task.train.counterparts) - mean(task.train.source))
    apply(editable, task, "steering", strength=0.5, offset=layer - 1, positions=positions)
    vectors = steering_vectors(editable)
    assert list(vectors) == [layer]
    torch.testing.assert_close(vectors[layer], expected, atol=1e-5, rtol=1e-4)


def test_mean_states_are_in_the_order_of_the_chats() -> None:
    editable = tiny_editable()
    task = steering_task(True)
    chats = [*task.train.source, *task.train.retain]  # of different lengths
    alone = torch.cat([mean_response_states(editable, [chat], [2], 1)[2] for chat in chats])
    torch.testing.assert_close(mean_response_states(editable, chats, [2], 1)[2], alone)


def test_offsets_stay_within_the_model() -> None:
    task = steering_task(True)
    layers = [layer_at_offset(task, 4, offset) for offset in (-2, -1, 0, 2, 9)]
    assert layers == [0, 0, 1, 3, 3]


def test_a_planted_direction_is_found_and_points_to_the_target() -> None:
    torch.manual_seed(0)
    planted = normalize(torch.randn(24))
    spread = torch.randn(300, 1).abs() * 4 * planted
    shared = 3 * torch.randn(300, 24)  # cancels in the difference of a pair
    states = ContrastStates(shared + spread + 0.3 * torch.randn(300, 24), shared, True)
    assert float(reading_direction(states, 0) @ planted) > 0.98
    swapped = ContrastStates(states.source, states.target, True)
    assert float(reading_direction(swapped, 0) @ planted) < -0.98


def test_equal_states_have_no_direction() -> None:
    with pytest.raises(ConfigError) as error:
        normalize(torch.zeros(3))
    assert error.value.code == "states-equal"


def test_reading_vectors_have_the_length_of_the_mean_difference_at_every_layer() -> None:
    editable = tiny_editable()
    task = steering_task(True)
    states = contrast_states(editable, task, range(4), 1)
    apply(editable, task, "reading-vector", strength=3.0, offset=1, span=4)
    vectors = steering_vectors(editable)
    assert list(vectors) == [2, 3]  # the model ends there
    for layer, vector in vectors.items():
        difference = mean_difference(states[layer])
        assert float(vector.norm() / difference.norm()) == pytest.approx(3.0)
        assert float(vector @ difference) > 0
