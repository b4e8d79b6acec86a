from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.method_task import adapter_weights
from helpers.tiny_edit import build_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.core.config import EditConfig, LoraConfig
from retouch.core.errors import DataError
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.representations.finetuning import SCALE, apply_lora_delta
from retouch.representations.logprobs import response_logprob
from retouch.task.examples import EditExamples, build_examples
from retouch.training import finetuning_adversary
from retouch.training.finetuning_adversary import RANK, FinetuningAdversary, snapshot_steps

IDS = torch.arange(6, 46).reshape(4, 10)


def adversary_config(overrides: Mapping[str, Any] | None = None) -> EditConfig:
    return tiny_config(
        {
            "adversary.finetune_steps": 6,
            "adversary.finetune_learning_rate": 2e-2,
            "adversary.finetune_weight": 1.0,
            **(overrides or {}),
        }
    )


def build_adversary(
    editable: EditableModel, config: EditConfig, pairs: bool = True
) -> tuple[FinetuningAdversary, EditExamples]:
    concept = tiny_concept(pairs)
    examples = build_examples(editable, concept, "raise", "train", config.data, 0)
    return FinetuningAdversary(editable, examples, config.adversary, 0), examples


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_update_acts_as_it_would_in_the_weights(family: str) -> None:
    editable = tiny_editable(family)
    delta = build_adversary(editable, adversary_config())[0].train(1)[-1]
    with apply_lora_delta(editable, delta):
        hooked = editable.model(input_ids=IDS, use_cache=False).logits
    plain = editable.model(input_ids=IDS, use_cache=False).logits
    for name, (a, b) in delta.items():
        assert a.shape[0] == b.shape[1] == RANK
        update = SCALE * b @ a
        # GPT-2's weights are transposed.
        editable.model.get_submodule(name).weight.data += update.T if family == "gpt2" else update
    merged = editable.model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(hooked, merged, atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)


def test_the_adversary_learns_and_leaves_model_and_adapter_unchanged() -> None:
    editable = tiny_editable()
    config = adversary_config(
        {"adversary.finetune_steps": 30, "adversary.finetune_learning_rate": 5e-3}
    )
    adversary, examples = build_adversary(editable, config)
    adapters.attach(editable, (1, 2), LoraConfig(r=4, lora_alpha=8.0), 0)
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    deltas = adversary.train(1)
    # It is trained on the target's prompts with the base model's responses to the source's.
    pairs = zip(examples.counterparts, examples.rejected, strict=True)
    chats = [
        TokenizedChat((*target.ids[: target.start], *bad.ids[bad.start :]), target.start)
        for target, bad in pairs
    ]

    def logprob() -> float:
        return float(response_logprob(editable, chats).mean())

    without = logprob()
    with apply_lora_delta(editable, deltas[0]):
        early = logprob()
    with apply_lora_delta(editable, deltas[-1]):
        late = logprob()
    assert without < early < late
    assert logprob() == without
    for name, parameter in editable.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


def test_training_lowers_the_loss_under_the_adversary() -> None:
    config = adversary_config(
        {
            "train.rounds": 8,
            "train.steps_per_round": 8,
            "train.learning_rate": 1e-2,
            "lora.layers_to_transform": (0, 1, 2, 3),
            "discriminator.layers": (3,),
            "loss.adversarial_weight": 0.0,
            "loss.matching_weight": 0.0,
            "loss.retain_weight": 0.0,
        }
    )
    events = list(build_training(tiny_editable(), config).trainer.train())
    assert "finetune" not in events[0].losses  # there is no edit to undo yet
    assert events[-1].losses["finetune"] < 0.95 * events[1].losses["finetune"]
    assert events[-1].best  # with an adversary the last round within the maximum drift is kept


def test_a_restored_training_has_the_same_adversaries() -> None:
    config, expected = adversary_config(), tiny_editable()
    trainer = build_training(expected, config).trainer
    for event in trainer.train():
        if event.round == 2:
            state = trainer.state()
            # Copied, since the training continues.
            state = replace(state, tensors={n: t.clone() for n, t in state.tensors.items()})
    editable = tiny_editable()
    restored = build_training(editable, config).trainer
    restored.restore(state)
    assert [event.round for event in restored.train()] == [3, 4]
    weights = adapter_weights(editable)
    assert all(torch.equal(weights[n], value) for n, value in adapter_weights(expected).items())


def test_pairs_are_required() -> None:
    editable = tiny_editable()
    with pytest.raises(DataError) as error:
        build_adversary(editable, adversary_config(), pairs=False)
    assert error.value.code == "pairs-missing"
    assert not editable.edited


@pytest.mark.parametrize("steps", [1, 2, 6, 30])
def test_the_last_step_has_a_snapshot(steps: int) -> None:
    kept = snapshot_steps(steps)
    assert max(kept) == steps
    assert min(kept) >= 1
    assert len(kept) <= 6


def test_the_adversarys_rate_and_schedule_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, str]] = []

    def finetune(*arguments: Any) -> list[float]:
        drawn.append((arguments[4], arguments[5]))
        return []

    monkeypatch.setattr(finetuning_adversary, "finetune", finetune)
    for spread in (1.0, 4.0):
        config = adversary_config({"adversary.finetune_spread": spread})
        adversary, _ = build_adversary(tiny_editable(), config)
        for number in range(12):
            adversary.train(number)
    fixed, spread_out = drawn[:12], drawn[12:]
    assert set(fixed) == {(2e-2, "constant")}
    assert {schedule for _, schedule in spread_out} == {"constant", "cosine"}
    rates = [rate for rate, _ in spread_out]
    assert 0.5e-2 <= min(rates) < 1.5e-2
    assert 3e-2 < max(rates) <= 8e-2
