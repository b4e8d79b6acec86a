"""The opponent that goes on training the model which is edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import DataError
from retouch.models import adapters
from retouch.representations.logprobs import response_logprob
from retouch.task.examples import build_examples
from retouch.task.layers import LayerSelection
from retouch.training.finetuning_adversary import RANK, SCALE, FinetuningAdversary, apply_lora_delta
from retouch.training.setup import build_trainer, set_up_training
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable

IDS = torch.arange(6, 46).reshape(4, 10)


def adversarial(**more: Any) -> Any:
    return settings(**({"tamper": 6, "tamper_lr": 2e-2, "tamper_weight": 1.0} | more))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_change_is_what_it_would_be_in_the_weights(family: str) -> None:
    editable, turned = tiny_editable(family), family == "gpt2"
    config = adversarial()
    rows = build_examples(editable, tiny_concept(), config, "train")
    change = FinetuningAdversary(editable, rows, config).train(1)[-1]
    with apply_lora_delta(editable, change):
        hooked = editable.model(input_ids=IDS, use_cache=False).logits
    plain = editable.model(input_ids=IDS, use_cache=False).logits
    for name, (a, b) in change.items():
        assert a.shape[0] == b.shape[1] == RANK
        delta = SCALE * b @ a
        editable.model.get_submodule(name).weight.data += delta.T if turned else delta
    merged = editable.model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(hooked, merged, atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)


def test_the_adversary_learns_and_leaves_model_and_adapter_as_they_are() -> None:
    editable, config = tiny_editable(), adversarial(tamper=30, tamper_lr=5e-3)
    rows = build_examples(editable, tiny_concept(), config, "train")
    finetuning_adversary = FinetuningAdversary(editable, rows, config)
    adapters.attach(editable, (1, 2), (), 4, 8.0, 0)
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    changes = finetuning_adversary.train(1)
    # It asks the target's prompts, with the responses that the base gives to the source's.
    pairs = zip(rows.counterparts, rows.rejected, strict=True)
    attack_targets = [
        TokenizedChat((*t.ids[: t.start], *bad.ids[bad.start :]), t.start) for t, bad in pairs
    ]

    def likely() -> float:
        return float(response_logprob(editable, attack_targets).mean())

    untouched = likely()
    with apply_lora_delta(editable, changes[0]):
        early = likely()
    with apply_lora_delta(editable, changes[-1]):
        late = likely()
    assert untouched < early < late
    assert likely() == untouched
    for name, parameter in editable.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


def test_the_edit_learns_to_stand_it() -> None:
    config = adversarial(
        rounds=8,
        steps=8,
        lr=2e-2,
        layers=(0, 1, 2, 3),
        read_layers=(3,),
        adversarial_weight=0.0,
        pair_weight=0.0,
        retain_weight=0.0,
    )
    setting = set_up_training(tiny_editable(), tiny_concept(), config)
    events = list(setting.trainer.train())
    assert "tamper" not in events[0].losses  # there is no edit yet that could be undone
    assert events[-1].losses["tamper"] < 0.95 * events[1].losses["tamper"]
    assert events[-1].best  # with an adversary the last round within the guard is kept


def test_a_restored_game_meets_the_same_adversaries() -> None:
    config, whole = adversarial(), tiny_editable()
    setting = set_up_training(whole, tiny_concept(), config)
    for event in setting.trainer.train():
        if event.round == 2:
            tensors, numbers = setting.trainer.state()
    editable = tiny_editable()
    again = set_up_training(editable, tiny_concept(), config)
    again.trainer.restore(tensors, numbers)
    assert [event.round for event in again.trainer.train()] == [3, 4]
    ours, theirs = adapters.parameters(editable), adapters.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_pairs_there_is_nothing_to_teach() -> None:
    editable, config = tiny_editable(), adversarial()
    rows = build_examples(editable, tiny_concept(pairs=False), config, "train")
    with pytest.raises(DataError, match="--tamper"):
        build_trainer(editable, rows, LayerSelection((1, 2), (2,), ""), lambda: None, config)  # type: ignore[arg-type, return-value]
    assert not editable.edited
