from __future__ import annotations

from typing import Any

import torch

from helpers.method_task import adapter_weights
from helpers.tiny_edit import build_training, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.training.contrast_init import contrast_directions

SIZE, RANK = 24, 4


def inputs(count: int, seed: int) -> torch.Tensor:
    """Random inputs with a large common component, as hidden states have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator) + 5.0 * torch.eye(SIZE)[0]


def test_the_first_direction_is_the_one_that_the_source_alone_has() -> None:
    source, retain = inputs(40, 0).double(), inputs(60, 1).double()
    source[:, 7] += 6.0
    rows = contrast_directions(source, retain, RANK)
    assert rows.shape == (RANK, SIZE)
    assert int(rows[0].abs().argmax()) == 7
    on_source, on_retain = ((x @ rows.T).pow(2).mean(0) for x in (source, retain))
    ratios = on_source / on_retain
    assert ratios[0] > 5 * ratios[1]
    assert torch.equal(ratios, ratios.sort(descending=True).values)


def test_a_direction_has_the_mean_square_of_a_random_row_of_peft() -> None:
    source = inputs(40, 0).double()
    rows = contrast_directions(source, inputs(60, 1), RANK)
    random = torch.nn.Linear(SIZE, 4000, bias=False).double()
    torch.nn.init.kaiming_uniform_(random.weight, a=5**0.5)
    expected = random(source).pow(2).mean()
    assert torch.allclose((source @ rows.T).pow(2).mean(0), expected.detach(), rtol=0.2)


def test_there_are_no_more_directions_than_independent_inputs() -> None:
    rows = contrast_directions(inputs(2, 0), inputs(9, 1), RANK)
    assert rows.shape == (2, SIZE)
    assert torch.isfinite(rows).all()


def initial_weights(**settings: Any) -> dict[str, torch.Tensor]:
    editable = tiny_editable()
    ids = torch.arange(6)[None]
    before = editable.model(input_ids=ids).logits
    build_training(editable, tiny_config(settings))
    assert torch.equal(editable.model(input_ids=ids).logits, before)
    return adapter_weights(editable)


def test_the_a_matrices_of_an_edit_are_set_and_the_model_is_unchanged() -> None:
    random = initial_weights(**{"lora.init_lora_weights": "random"})
    contrast = initial_weights()
    for name, weight in contrast.items():
        assert torch.equal(weight, random[name]) is ("lora_B" in name), name


def test_without_a_retain_set_they_stay_random() -> None:
    weights = [
        initial_weights(**{"data.num_retain": 0, "lora.init_lora_weights": init})
        for init in ("contrast", "random")
    ]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
