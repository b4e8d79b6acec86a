"""What all methods that train an adapter have in common, and supervised fine-tuning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from helpers.method_task import (
    ARE,
    adapter_weights,
    apply_method,
    method_settings,
    method_task,
)
from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ConfigError, DivergedError
from retouch.methods.cached_batches import CachedBatches
from retouch.methods.lora import PeriodicValidation, base_kl, response_loss
from retouch.models import adapters
from retouch.models.segment import Segment
from retouch.representations.batch import pad_right
from retouch.representations.packing import Packer

LAST = 3  # layer of the tiny model
LORA = (
    "lora-sft",
    "lora-sft-replay",
    "lora-sft-kl",
    "lorra",
    "circuit-breaker",
    "paired-matching",
    "dpo",
)


@pytest.mark.parametrize("id", [*LORA, *ARE])
def test_detaching_restores_the_base_model(id: str) -> None:
    editable = tiny_editable()
    task = method_task(editable)
    base, before = editable.model, {n: p.clone() for n, p in editable.model.named_parameters()}
    attributes, config = set(vars(base)), base.config.to_dict()
    apply_method(editable, id, task)
    assert task.validator().drift > 0
    adapters.detach(editable)
    assert task.validator().drift == pytest.approx(0, abs=1e-5)
    after = dict(editable.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # No attribute is left on it either, such as another forward method.
    assert editable.model is base
    assert set(vars(base)) == attributes
    assert base.config.to_dict() == config
    assert not base.training


@pytest.mark.parametrize("id", ["lora-sft-kl", "lorra", "dpo", "are-original-source"])
def test_the_seed_determines_the_weights_bit_for_bit(id: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for seed in (3, 3, 4):
        editable = tiny_editable()
        torch.manual_seed(len(found))  # the global state has no effect
        task = method_task(editable, overrides={"seed": seed})
        apply_method(editable, id, task, **({} if id in ARE else {"max_steps": 4}))
        found.append(adapter_weights(editable))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.parametrize("id", ["lora-sft", "lora-sft-replay", "lora-sft-kl", "dpo"])
def test_training_raises_the_log_probability_of_target_responses(id: str) -> None:
    editable = tiny_editable()
    task = method_task(editable)
    before = task.validator().score
    apply_method(editable, id, task)
    assert task.validator().score > before + 0.1


@pytest.mark.parametrize("id", ["lora-sft", "lora-sft-replay", "lora-sft-kl"])
def test_retain_losses_need_no_retain_set(id: str) -> None:
    editable = tiny_editable()
    task = method_task(editable, overrides={"data.num_retain": 0})
    apply_method(editable, id, task, max_steps=24)
    assert editable.adapted


@pytest.mark.parametrize("packed", [False, True])
def test_the_response_loss_equals_that_of_transformers(packed: bool) -> None:
    editable = tiny_editable()
    task = method_task(editable)
    task = replace(task, packer=Packer(editable, packed=packed))
    batch = pad_right(range(len(task.train.chosen)), task.train.chosen, 0)
    labels = torch.full_like(batch.ids, -100)
    for row, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        labels[row, start:length] = batch.ids[row, start:length]
    expected = editable.model(
        input_ids=batch.ids, attention_mask=batch.token_mask().long(), labels=labels
    ).loss
    segment = Segment(editable, 0, LAST)
    (cached,) = CachedBatches(editable, task, segment).cache(task.train.chosen, 8)
    assert cached.batch.packed is packed
    assert float(response_loss(segment, cached)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_the_kl_loss_is_0_at_first_and_then_matches_float64(packed: bool) -> None:
    editable = tiny_editable()
    task = method_task(editable)
    task, chats = replace(task, packer=Packer(editable, packed=packed)), task.train.retain
    segment = Segment(editable, 0, LAST)
    (cached,) = CachedBatches(editable, task, segment).cache(chats, len(chats), (LAST,))
    adapters.attach(editable, (1, 2), LoraConfig(r=4, lora_alpha=8.0), 0)
    assert float(base_kl(segment, cached).detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    total, tokens = 0.0, 0
    for chat in chats:
        ids = torch.tensor([chat.ids])
        edited = editable.model(input_ids=ids).logits[0].double().log_softmax(-1)
        with editable.base_model():
            base = editable.model(input_ids=ids).logits[0].double().log_softmax(-1)
        response = slice(chat.start - 1, len(chat.ids) - 1)
        kl = F.kl_div(edited[response], base[response], log_target=True, reduction="sum")
        total += float(kl.detach())
        tokens += len(chat.ids) - chat.start
    assert total > 0
    assert float(base_kl(segment, cached).detach()) == pytest.approx(total / tokens, rel=1e-4)


def test_validation_is_periodic_and_includes_the_last_step() -> None:
    editable = tiny_editable()
    task = method_task(editable)
    adapters.attach(editable, (1,), LoraConfig(), 0)
    settings = method_settings("lora-sft", max_steps=25, num_validations=3)
    steps: list[int] = []
    validation = PeriodicValidation(
        editable, task, settings, lambda description, done, total: steps.append(done)
    )
    for step in range(1, 26):
        validation.after_step(step)
    assert steps == [8, 16, 24, 25]


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    editable = tiny_editable()
    with pytest.raises(DivergedError) as error:
        apply_method(editable, "lora-sft", method_task(editable), learning_rate=1e30)
    assert error.value.code == "loss-not-finite"


@pytest.mark.parametrize("id", ["dpo", "circuit-breaker"])
def test_source_responses_are_required(id: str) -> None:
    editable = tiny_editable()
    task = method_task(editable, pairs=False)
    with pytest.raises(ConfigError) as error:
        apply_method(editable, id, task)
    assert error.value.code == "pairs-missing"
    assert not editable.adapted


def test_the_search_range_includes_the_default() -> None:
    from retouch.methods.registry import get_method

    for id in LORA:
        for field in get_method(id).settings.model_fields.values():
            extra = field.json_schema_extra
            search = extra.get("search", {}) if isinstance(extra, dict) else {}
            assert isinstance(search, dict)
            if "low" in search:
                assert search["low"] <= field.default <= search["high"]
                assert not search["log"] or math.log(search["low"]) < math.log(search["high"])
