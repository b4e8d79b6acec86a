"""The terms of the generator's loss besides those of pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.groups_concept import groups_concept
from helpers.tiny_edit import build_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.concepts.concept import Context
from retouch.core.errors import ConfigError, DataError
from retouch.representations.logprobs import response_logprob

SFT_ALONE: dict[str, Any] = {
    "loss.adversarial_weight": 0.0,
    "loss.matching_weight": 0.0,
    "loss.retain_weight": 0.1,
    "lora.layers_to_transform": (2, 3),
    "discriminator.layers": (2,),
}


def test_latent_perturbations_raise_the_matching_loss() -> None:
    losses = []
    for epsilon in (0.0, 0.5):
        config = tiny_config({"train.rounds": 1, "adversary.latent_epsilon": epsilon})
        (event,) = build_training(tiny_editable(), config).trainer.train()
        losses.append(event.losses["matching"])
    assert losses[1] > losses[0]


def test_the_sft_loss_trains_layers_above_those_that_are_read() -> None:
    with pytest.raises(ConfigError) as error:
        build_training(tiny_editable(), tiny_config(SFT_ALONE))
    assert error.value.code == "layer-not-trained"
    config = tiny_config({**SFT_ALONE, "loss.sft_weight": 1.0, "train.rounds": 12})
    events = list(build_training(tiny_editable(), config).trainer.train())
    # The frozen head of a random model leaves little to learn: a third of a nat.
    assert events[-1].losses["sft"] < events[0].losses["sft"] - 0.3


def test_every_token_of_a_prefill_is_trained_to_begin_the_target_response() -> None:
    overrides = {
        **SFT_ALONE,
        "loss.sft_weight": 1.0,
        "loss.matching_weight": 1.0,
        "data.prefill_tokens": 6,
        "data.prefills_per_example": 1,
        "train.rounds": 12,
    }
    editable = tiny_editable()
    training = build_training(editable, tiny_config(overrides))
    dataset = training.trainer.dataset
    batch = dataset.source[0]
    (micro,) = batch.micro_batches
    prefills = [dataset.examples.source[i].prefill for i in batch.index]
    assert sum(prefills) > 0
    lengths = [
        len(chat.ids) - chat.start for chat in map(dataset.examples.source.__getitem__, batch.index)
    ]
    assert len(micro.responses[0]) == len(micro.response_tokens) == sum(lengths) + sum(prefills)
    assert float(micro.response_weights.sum()) == pytest.approx(batch.normalizers.weights)
    expected = [
        dataset.examples.source[i].ids[dataset.examples.source[i].start]
        for i, prefill in zip(micro.batch.index, prefills, strict=True)
        for _ in range(prefill)
    ]
    assert micro.response_tokens[sum(lengths) :].tolist() == expected
    # Their reference is the state before the response in the counterpart, which has no prefill.
    for states in micro.cached.states.values():
        assert len(states) == sum(lengths) + sum(prefills)

    def first_logprob() -> float:
        chats = [one for one in dataset.examples.source if one.prefill > 1]
        cut = [
            TokenizedChat(
                (*one.ids[: one.start - one.prefill + 1], one.ids[one.start]),
                one.start - one.prefill + 1,
            )
            for one in chats
        ]
        return float(response_logprob(editable, cut).mean())

    before = first_logprob()
    list(training.trainer.train())
    assert first_logprob() > before + 0.1


def test_to_reduce_a_gap_the_groups_are_made_indistinguishable() -> None:
    config = tiny_config(
        {
            "data.num_examples": 16,
            "train.rounds": 6,
            "loss.retain_weight": 0.1,
            "discriminator.positions": 1,
        }
    )
    training = build_training(tiny_editable(), config, groups_concept("lower"))
    events = list(training.trainer.train())
    assert events[-1].losses["adversarial"] < events[0].losses["adversarial"]
    assert all(-1 <= event.validation_score <= 0 for event in events)


def train_choices(direction: Any, rounds: int) -> list[Any]:
    """The rounds of a training in which the choices alone are learned."""
    config = tiny_config(
        {
            "data.num_examples": 16,
            "train.learning_rate": 0.01,
            "train.rounds": rounds,
            "loss.adversarial_weight": 0.0,
            "loss.retain_weight": 0.0,
            "loss.sft_weight": 1.0,
        }
    )
    return list(build_training(tiny_editable(), config, groups_concept(direction)).trainer.train())


def test_to_reduce_a_gap_both_choices_become_equally_likely() -> None:
    events = train_choices("lower", 8)
    assert events[-1].losses["balance"] < 0.2 * events[0].losses["balance"]
    assert "sft" not in events[0].losses


def test_with_pairs_the_target_responses_are_learned_and_not_the_choices() -> None:
    concept = groups_concept("lower")
    paired = replace(concept.directions["raise"], context=Context("w90"))
    concept = replace(concept, directions={"raise": paired}, hash="")
    settings = {"data.num_examples": 15, "train.rounds": 1, "loss.sft_weight": 1.0}
    training = build_training(tiny_editable(), tiny_config(settings), concept)
    (event,) = training.trainer.train()
    assert "sft" in event.losses
    assert "balance" not in event.losses


def test_to_increase_a_gap_the_choice_of_each_group_is_learned() -> None:
    events = train_choices("higher", 20)
    assert events[-1].validation_score > events[0].validation_score


def test_the_kl_loss_keeps_the_retain_responses() -> None:
    drifts = []
    for weight in (0.0, 30.0):
        config = tiny_config(
            {
                "train.rounds": 6,
                "loss.adversarial_weight": 0.0,
                "loss.matching_weight": 0.0,
                "loss.retain_weight": 0.0,
                "loss.sft_weight": 1.0,
                "loss.kl_weight": weight,
            }
        )
        events = list(build_training(tiny_editable(), config).trainer.train())
        assert ("kl" in events[0].losses) is (weight > 0)
        drifts.append(events[-1].drift)
    assert drifts[1] < 0.5 * drifts[0]


def test_the_npo_loss_makes_the_sources_own_responses_less_likely() -> None:
    changed = []
    for weight in (0.0, 1.0):
        settings = {**SFT_ALONE, "loss.kl_weight": 1e-3, "loss.npo_weight": weight}
        editable = tiny_editable()
        training = build_training(editable, tiny_config({**settings, "train.rounds": 12}))
        rejected = training.task.train.rejected
        before = response_logprob(editable, rejected).mean()
        events = list(training.trainer.train())
        assert ("npo" in events[0].losses) is (weight > 0)
        changed.append(float(response_logprob(editable, rejected).mean() - before))
    assert changed[1] < changed[0] - 0.3, changed


def test_npo_without_pairs_is_an_error() -> None:
    config = tiny_config({**SFT_ALONE, "loss.npo_weight": 1.0})
    with pytest.raises(DataError, match="`npo_weight` needs source responses"):
        build_training(tiny_editable(), config, tiny_concept(pairs=False))


def test_a_divided_batch_has_the_gradients_of_the_whole() -> None:
    weights = {"loss.sft_weight": 1.0, "loss.kl_weight": 6.0, "loss.first_token_weight": 4.0}
    weights |= {"loss.npo_weight": 1.0}
    losses = []
    for size in (None, 1):
        config = tiny_config({**weights, "train.rounds": 1, "train.micro_batch_size": size})
        (event,) = build_training(tiny_editable(), config).trainer.train()
        losses.append(event.losses)
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_distillation_moves_the_responses_towards_the_counterparts() -> None:
    config = tiny_config({**SFT_ALONE, "loss.distillation_weight": 1.0, "train.rounds": 12})
    events = list(build_training(tiny_editable(), config).trainer.train())
    losses = [event.losses["distillation"] for event in events]
    assert "sft" not in events[0].losses
    assert 0 < losses[-1] < losses[0]


def test_distillation_without_counterparts_is_an_error() -> None:
    config = tiny_config({**SFT_ALONE, "loss.distillation_weight": 1.0})
    with pytest.raises(DataError, match="`distillation_weight` needs target counterparts"):
        build_training(tiny_editable(), config, tiny_concept(pairs=False))
