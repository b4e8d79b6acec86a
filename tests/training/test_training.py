from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from retouch.concepts.concept import Concept, DirectionSpec, Example
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, DataError, DivergedError, ModelError
from retouch.core.types import Message
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.representations.discriminator import Discriminators
from retouch.representations.losses import discriminator_loss, generator_loss, normalized_mse_loss
from retouch.training.ema import EMA
from retouch.training.setup import TrainingSetup, set_up_training
from helpers.tiny_edit import build_training, run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable


def test_losses_are_what_their_docstrings_say() -> None:
    logits = torch.tensor([0.0, 2.0])
    assert generator_loss(logits) == pytest.approx(float(-logits.sigmoid().log().mean()))
    assert discriminator_loss(torch.zeros(3), torch.zeros(5), 0.1) == pytest.approx(0.6931, 1e-3)
    # Each class has half the weight however many rows it has.
    few, many = torch.tensor([3.0]), torch.tensor([-3.0] * 9)
    assert discriminator_loss(few, many, 0.0) == pytest.approx(
        float(discriminator_loss(few, many[:1], 0.0)), abs=1e-6
    )
    wanted = torch.ones(2, 3)
    assert normalized_mse_loss(wanted, wanted) == 0
    assert normalized_mse_loss(torch.zeros(2, 3), wanted) == 1


@pytest.mark.parametrize("width", [0, 16])
def test_planted_separable_states_are_read_and_random_ones_are_not(width: int) -> None:
    torch.manual_seed(0)
    shift = torch.zeros(12)
    shift[3] = 6.0
    states = {0: torch.randn(200, 12)}
    planted = {0: torch.randn(200, 12) + shift}
    discriminators = Discriminators((0,), 12, width, 3e-2, 0)
    discriminators.standardise(states)
    discriminators.fit({0: planted[0][:150]}, {0: states[0][:150]}, 150, 0.1)
    assert discriminators.accuracy({0: planted[0][150:]}, {0: states[0][150:]}) > 0.9
    discriminators = Discriminators((0,), 12, width, 1e-2, 0)
    discriminators.fit({0: torch.randn(150, 12)}, {0: torch.randn(150, 12)}, 60, 0.1)
    assert discriminators.accuracy({0: torch.randn(500, 12)}, {0: torch.randn(500, 12)}) < 0.6


def test_moving_average_is_applied_and_taken_off() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = EMA({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update()
    with average.applied():
        assert weight.tolist() == [0.5, 0.5]
    assert weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("part", ["adversarial", "pair"])
@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_each_part_of_the_game_lowers_its_loss(part: str, direction: str) -> None:
    weights = {"adversarial_weight": 0.0, "pair_weight": 0.0} | {f"{part}_weight": 1.0}
    config = settings(direction=direction, rounds=6, retain_weight=0.1, **weights)
    setting = set_up_training(tiny_editable(), tiny_concept(), config)
    losses = [event.losses[part] for event in setting.trainer.train()]
    assert losses[-1] < 0.9 * losses[0]


def test_the_edit_moves_the_wanted_response_and_holds_frozen_weights() -> None:
    editable = tiny_editable()
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    # A random model has learnt nothing that could carry over: it is num_validations on the rows it is
    # trained on.
    concept = tiny_concept()
    own = tuple(replace(row, response=None) for row in concept.examples["train"])
    concept = replace(concept, rows=dict.fromkeys(concept.examples, own))
    config = settings(rounds=6, adversarial_weight=0.0, retain_weight=0.1, response_tokens=4)
    setting = set_up_training(editable, concept, config)
    events = list(setting.trainer.train())
    assert events[-1].validation_score > events[0].validation_score
    assert events[-1].drift > 0
    adapters.detach(editable)
    for name, parameter in editable.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_concept_without_pairs_is_judged_by_fixed_discriminators() -> None:
    setting = set_up_training(tiny_editable(), tiny_concept(pairs=False), settings(retain_weight=0.1))
    assert setting.patching is None
    events = list(setting.trainer.train())
    assert all("pair" not in event.losses for event in events)
    assert max(e.validation_score for e in events) > events[0].validation_score


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others() -> None:
    found = []
    for seed in (3, 3, 4):
        editable = tiny_editable()
        play(editable, settings(seed=seed))
        found.append({n: p.detach().clone() for n, p in adapters.parameters(editable).items()})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not torch.equal(found[0][n], found[2][n]) for n in found[0])


@pytest.mark.parametrize("fresh", [False, True])
def test_a_restored_game_goes_on_bit_for_bit(fresh: bool) -> None:
    config = settings(discriminator_fresh=fresh)
    whole = tiny_editable()
    play(whole, config)
    cut = set_up_training(tiny_editable(), tiny_concept(), config)
    for event in cut.trainer.train():
        if event.round == 2:
            break
    tensors, numbers = cut.trainer.state()
    editable = tiny_editable()
    again = set_up_training(editable, tiny_concept(), config)
    again.trainer.restore(tensors, numbers)
    assert [event.round for event in again.trainer.train()] == [3, 4]
    again.trainer.finish()
    ours, theirs = adapters.parameters(editable), adapters.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"read_layers": (42,), "layers": (1,)}, "no block 42"),
        ({"read_layers": (1,), "layers": (2,)}, "never be trained"),
        ({"read_layers": (1,), "layers": (-1,)}, "no block -1"),
    ],
)
def test_blocks_that_cannot_be_edited_are_named(named: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        set_up_training(tiny_editable(), tiny_concept(), settings(**named))


def test_patience_ends_the_game() -> None:
    setting = set_up_training(
        tiny_editable(), tiny_concept(), settings(rounds=30, patience=2, lr=0.2)
    )
    events = list(setting.trainer.train())
    assert len(events) < 30
    assert not any(event.best for event in events[-2:])


def test_no_round_within_the_guard_is_an_error() -> None:
    setting = set_up_training(tiny_editable(), tiny_concept(), settings(drift_guard=1e-12))
    list(setting.trainer.train())
    with pytest.raises(DivergedError, match="drift guard"):
        setting.trainer.finish()


def test_a_loss_that_is_not_finite_stops_the_game() -> None:
    setting = set_up_training(tiny_editable(), tiny_concept(), settings(lr=1e30, rounds=9))
    with pytest.raises(DivergedError, match="not finite"):
        list(setting.trainer.train())


def test_one_class_is_an_error_that_names_the_missing_side() -> None:
    concept = tiny_concept()
    rows = {s: tuple(r for r in rs if r.label != "positive") for s, rs in concept.examples.items()}
    with pytest.raises(DataError, match="no train rows labelled positive"):
        set_up_training(
            tiny_editable(), Concept("tiny", "", "", rows, concept.directions), settings()
        )


def test_a_second_edit_on_top_is_an_error() -> None:
    editable = tiny_editable()
    play(editable, settings(rounds=1))
    with pytest.raises(ModelError, match="adapter already"):
        set_up_training(editable, tiny_concept(), settings())
