from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.method_task import adapter_weights
from helpers.tiny_edit import build_training, run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.core.errors import DivergedError, ModelError
from retouch.models import adapters
from retouch.task.validation import ValidationResult
from retouch.training.setup import build_trainer
from retouch.training.trainer import KL_GROWTH


@pytest.mark.parametrize("term", ["adversarial", "matching"])
@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_training_lowers_each_term_of_the_loss(term: str, direction: str) -> None:
    config = tiny_config(
        {
            "direction": direction,
            "train.rounds": 6,
            "loss.retain_weight": 0.1,
            "loss.adversarial_weight": float(term == "adversarial"),
            "loss.matching_weight": float(term == "matching"),
        }
    )
    training = build_training(tiny_editable(), config)
    losses = [event.losses[term] for event in training.trainer.train()]
    assert losses[-1] < 0.9 * losses[0]


def test_training_raises_the_validation_score_and_keeps_the_frozen_weights() -> None:
    editable = tiny_editable()
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    # A random model cannot generalise: it is validated on the examples that it is trained on.
    concept = tiny_concept()
    train = tuple(replace(one, response=None) for one in concept.examples["train"])
    concept = replace(concept, examples=dict.fromkeys(concept.examples, train))
    config = tiny_config(
        {
            "train.rounds": 6,
            "loss.adversarial_weight": 0.0,
            "loss.sft_weight": 1.0,
            "loss.retain_weight": 0.1,
            "data.max_new_tokens": 4,
        }
    )
    events = list(build_training(editable, config, concept).trainer.train())
    assert events[-1].validation_score > events[0].validation_score
    assert events[-1].drift > 0
    adapters.detach(editable)
    for name, parameter in editable.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_seed_determines_the_weights_bit_for_bit() -> None:
    found = []
    for seed in (3, 3, 4):
        editable = tiny_editable()
        run_training(editable, tiny_config({"seed": seed}))
        found.append(adapter_weights(editable))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not torch.equal(found[0][n], found[2][n]) for n in found[0])


@pytest.mark.parametrize("reset", [False, True])
def test_a_restored_training_continues_bit_for_bit(reset: bool) -> None:
    config = tiny_config({"discriminator.reset_each_round": reset})
    expected = tiny_editable()
    run_training(expected, config)
    interrupted = build_training(tiny_editable(), config).trainer
    for event in interrupted.train():
        if event.round == 2:
            break
    editable = tiny_editable()
    restored = build_training(editable, config).trainer
    restored.restore(interrupted.state())
    assert [event.round for event in restored.train()] == [3, 4]
    restored.finish()
    weights = adapter_weights(editable)
    assert all(torch.equal(weights[n], value) for n, value in adapter_weights(expected).items())


def test_patience_ends_the_training() -> None:
    config = tiny_config({"train.rounds": 30, "train.patience": 2, "train.learning_rate": 0.2})
    events = list(build_training(tiny_editable(), config).trainer.train())
    assert len(events) < 30
    assert not any(event.best for event in events[-2:])


def test_without_a_round_within_the_limits_the_closest_is_kept() -> None:
    editable = tiny_editable()
    config = tiny_config({"train.max_drift": 1e-6, "train.learning_rate": 1e-7})
    trainer = build_training(editable, config).trainer
    drifts = [event.drift for event in trainer.train()]
    trainer.finish()
    assert trainer.measure_excess() == pytest.approx(max(1.0, min(drifts) / 1e-6))
    editable = tiny_editable()
    trainer = run_training(editable, tiny_config({"train.max_drift": 1e-9})).trainer
    assert trainer.measure_excess() > 1
    assert adapter_weights(editable)


def test_a_round_far_over_the_limit_is_undone_and_the_rate_halved() -> None:
    editable = tiny_editable()
    config = tiny_config(
        {"train.max_drift": 1e-7, "train.learning_rate": 0.2, "train.ema_decay": 0.0}
    )
    trainer = build_training(editable, config).trainer
    before = adapter_weights(editable)
    first = next(trainer.train())
    assert first.undone
    # Undone after the event's round: the second begins from the initial weights.
    assert trainer.state().numbers["rate_scale"] == "0.5"
    after = adapter_weights(editable)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    kept = tiny_config({"train.max_drift": 100.0, "train.learning_rate": 0.2})
    assert not next(build_training(tiny_editable(), kept).trainer.train()).undone


def test_the_learning_rate_rises_and_decays() -> None:
    config = tiny_config(
        {
            "train.learning_rate": 1.0,
            "train.warmup_ratio": 0.25,
            "train.lr_scheduler_type": "cosine",
        }
    )
    trainer = build_training(tiny_editable(), config).trainer
    rates = [trainer._learning_rate(step) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 < rates[-1] < 0.2
    constant = tiny_config(
        {"train.learning_rate": 1.0, "train.lr_scheduler_type": "constant", "train.warmup_ratio": 0}
    )
    trainer = build_training(tiny_editable(), constant).trainer
    assert {trainer._learning_rate(step) for step in range(16)} == {1.0}


def test_the_b_matrices_learn_faster() -> None:
    config = tiny_config(
        {
            "train.rounds": 1,
            "train.steps_per_round": 1,
            "train.warmup_ratio": 0,
            "train.learning_rate": 1e-3,
            "train.loraplus_lr_ratio": 4.0,
            "train.ema_decay": 0.0,
        }
    )
    editable = tiny_editable()
    trainer = build_training(editable, config).trainer
    list(trainer.train())
    # Adam's first step has the size of the learning rate; a new adapter's B matrices are 0.
    of_b = [w.abs().max() for name, w in adapter_weights(editable).items() if "lora_B" in name]
    assert float(max(of_b)) == pytest.approx(4e-3, rel=0.01)


def test_the_weight_of_the_kl_divergence_falls_back_within_the_limits() -> None:
    trainer = build_training(tiny_editable(), tiny_config()).trainer

    def scale_after(drift: float) -> float:
        trainer._correct(ValidationResult(0.0, drift))
        return trainer._objective.kl_scale

    limit = trainer._train.max_drift
    assert scale_after(2 * limit) == KL_GROWTH
    assert scale_after(0.0) == 1.0
    assert scale_after(0.0) == 1.0


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    config = tiny_config({"train.learning_rate": 1e30, "train.rounds": 9})
    training = build_training(tiny_editable(), config)
    with pytest.raises(DivergedError) as error:
        list(training.trainer.train())
    assert error.value.code == "loss-not-finite"


def test_an_edited_model_cannot_be_edited_again() -> None:
    editable = tiny_editable()
    config = tiny_config({"train.rounds": 1})
    task = run_training(editable, config).task
    with pytest.raises(ModelError) as error:
        build_trainer(editable, task, task.layers, config.method)
    assert error.value.code == "model-edited"
