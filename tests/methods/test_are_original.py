from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from helpers.method_task import ARE, apply_method, method_settings, method_task
from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.methods import are_original
from retouch.models import adapters
from retouch.models.segment import Segment
from retouch.task.validation import ValidationResult


def test_the_generator_lowers_its_loss() -> None:
    editable = tiny_editable()
    task = method_task(editable)
    prompts, labels = are_original.labelled_prompts(task.train)
    assert labels.tolist() == [0, 1] * 8
    assert prompts[0].tolist() == [list(task.train.source[0].ids[: task.train.source[0].start])]
    settings = method_settings(
        "are-original", discriminator_epochs=200, discriminator_learning_rate=1e-2
    )
    lora = LoraConfig(r=8, lora_alpha=8.0, target_modules=settings.target_modules)
    adapters.attach(editable, (1, 2), lora, 0)
    segment = Segment(editable, 1, 2)
    inputs = [segment.capture_inputs(ids) for ids in prompts]
    read = partial(are_original.last_state, segment, (1, 2))
    states = are_original.last_states(read, inputs)
    assert states.shape == (16, 64)
    discriminator = are_original.fit_discriminator(states, labels, settings, 0)
    assert are_original.accuracy(discriminator, states, labels) > 0.9
    whole = editable.model(input_ids=prompts[3], output_hidden_states=True).hidden_states
    expected = torch.cat([whole[layer + 1][:, -1] for layer in (1, 2)], -1)
    assert torch.allclose(states[3:4], expected, atol=1e-5)
    weights = list(adapters.parameters(editable).values())
    losses = [
        are_original.train_generator(weights, read, inputs, discriminator, settings)
        for _ in range(3)
    ]
    assert losses[2] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("id", "trained", "last"), [("are-original", 16, 0.46), ("are-original-source", 8, 0.69)]
)
def test_every_round_has_a_new_discriminator_and_the_rule_ends_the_loop(
    id: str, trained: int, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny_editable()
    task = method_task(editable)
    discriminators: list[nn.Module] = []
    counts: list[int] = []
    fit, train = are_original.fit_discriminator, are_original.train_generator

    def record_fit(*given: Any) -> nn.Module:
        discriminators.append(fit(*given))
        return discriminators[-1]

    def record_train(
        weights: Any, read: Any, prompts: Any, discriminator: Any, settings: Any
    ) -> float:
        counts.append(len(prompts))
        assert discriminator is discriminators[-1]
        return train(weights, read, prompts, discriminator, settings)

    accuracies = iter([0.9, 0.7, 0.45, last, 0.9])
    monkeypatch.setattr(are_original, "fit_discriminator", record_fit)
    monkeypatch.setattr(are_original, "train_generator", record_train)
    monkeypatch.setattr(are_original, "accuracy", lambda *_: next(accuracies))
    apply_method(editable, id, task, rounds=9)
    assert counts == [trained] * 4  # only the fourth accuracy is within the range
    weights = {tuple(next(one.parameters())[0].tolist()) for one in discriminators}
    assert len(weights) == 5


def test_prefill_examples_are_not_among_the_prompts() -> None:
    task = method_task(tiny_editable(), overrides={"data.prefill_tokens": 2})
    assert len(task.train.source) == 16
    assert len(are_original.labelled_prompts(task.train)[0]) == 16


def test_target_modules_that_do_not_exist_are_named() -> None:
    editable = tiny_editable("gpt2")
    with pytest.raises(ModelError, match="q_proj"):
        apply_method(editable, "are-original", method_task(editable))


def test_the_validator_is_not_used() -> None:
    editable = tiny_editable()

    def fail() -> ValidationResult:
        raise AssertionError

    for id in ARE:
        apply_method(editable, id, replace(method_task(editable), validator=fail))  # type: ignore[arg-type]
        adapters.detach(editable)
