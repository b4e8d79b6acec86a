"""Batches in micro-batches, and where their activations are cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from helpers.method_task import adapter_weights
from helpers.tiny_edit import build_training, run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.core.errors import ConfigError, ModelError

Weights = Mapping[str, torch.Tensor]


def train_weights(overrides: Mapping[str, Any] | None = None, pairs: bool = True) -> Weights:
    editable = tiny_editable()
    run_training(editable, tiny_config(overrides), tiny_concept(pairs))
    return adapter_weights(editable)


def assert_close(weights: Weights, expected: Weights) -> None:
    assert all(torch.allclose(weights[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss.match_prompt_suffix": True},
        {"adversary.latent_epsilon": 0.2},
        {"loss.sft_weight": 1.0},
        {
            "adversary.finetune_steps": 3,
            "lora.layers_to_transform": (0, 1, 2),
            "loss.first_token_weight": 4.0,
        },
    ],
)
def test_micro_batches_give_the_weights_of_whole_batches(overrides: dict[str, Any]) -> None:
    expected = train_weights(overrides)
    assert_close(train_weights({"train.micro_batch_size": 1, **overrides}), expected)
    assert_close(train_weights({"train.micro_batch_size": 3, **overrides}), expected)


def test_batches_of_responses_without_pairs_can_be_divided_too() -> None:
    expected = train_weights({"loss.sft_weight": 1.0}, pairs=False)
    overrides = {"loss.sft_weight": 1.0, "train.micro_batch_size": 1}
    assert_close(train_weights(overrides, pairs=False), expected)


def test_the_micro_batch_size_is_halved_when_memory_runs_out() -> None:
    expected = train_weights()
    editable = tiny_editable()

    def limited(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    editable.blocks[2].register_forward_pre_hook(limited)
    trainer = build_training(editable, tiny_config()).trainer
    assert trainer.dataset.micro_batch_size == 4
    list(trainer.train())
    trainer.finish()
    assert trainer.dataset.micro_batch_size == 1
    assert_close(adapter_weights(editable), expected)


def test_one_row_that_exceeds_the_memory_is_an_error() -> None:
    editable = tiny_editable()

    def fail(*_: Any) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")

    editable.blocks[2].register_forward_pre_hook(fail)
    training = build_training(editable, tiny_config())
    with pytest.raises(ModelError, match="size of 1") as error:
        list(training.trainer.train())
    assert error.value.code == "out-of-memory"


def test_activations_on_disk_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train_weights()
    monkeypatch.setattr("retouch.models.activation_cache.SMALL", 0)
    editable = tiny_editable()
    training = run_training(editable, tiny_config({"train.activation_cache": "1B"}))
    cached = training.trainer.dataset.cached_bytes
    assert cached["memory"] == 0
    assert cached["disk"] > 10_000
    weights = adapter_weights(editable)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_an_invalid_cache_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.activation_cache.*'much'"):
        tiny_config({"train.activation_cache": "much"})
