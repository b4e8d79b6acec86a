"""What the game may be played with beside pairs: forced beginnings, groups, words and pushes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from retouch.concepts.chat import TokenizedChat
from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Message
from retouch.models.segment import Segment
from retouch.representations.activations import forward_with_states
from retouch.representations.batch import make_batches
from retouch.representations.latent_pgd import latent_pgd
from retouch.representations.losses import domain_confusion_loss, normalized_mse_loss, sft_loss
from retouch.task.examples import build_examples
from retouch.training.setup import set_up_training
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable

IDS = torch.arange(6, 46).reshape(4, 10)


def groups_concept(better: str) -> Concept:
    """Prompts of two groups, which are to be followed by `w7` as often as by `w8`, or not."""

    def rows(begin: int) -> tuple[Example, ...]:
        made = []
        for i in range(begin, begin + 12):
            for group, mark in (("a", "w80"), ("b", "w81")):
                made.append(Example((Message("user", f"w{i} {mark}"),), "person", group=group))
            made.append(Example((Message("user", f"w60 w{i}"),), "retain", "w9"))
        return tuple(made)

    direction_spec = DirectionSpec(("person",), ("person",), ("retain",), "gap", better)  # type: ignore[arg-type]
    gap = MetricSpec("g", "gap", ("person",), "gap", choices=("w7", "w8"), groups=("a", "b"))
    parted = {"train": rows(0), "validation": rows(20), "test": rows(40)}
    return Concept("tiny", "Tiny", "", parted, {"raise": direction_spec}, metrics=(gap,))  # type: ignore[arg-type]


def test_losses_are_what_their_docstrings_say() -> None:
    assert float(domain_confusion_loss(torch.zeros(3))) == pytest.approx(0.6931, 1e-3)
    assert (
        domain_confusion_loss(torch.tensor([4.0]))
        == domain_confusion_loss(torch.tensor([-4.0]))
        > 0.7
    )
    logits, told = torch.randn(2, 5), torch.tensor([1, 3])
    each = -logits.log_softmax(-1)[[0, 1], told]
    got = sft_loss(logits, told, torch.tensor([3.0, 1.0]))
    assert float(got) == pytest.approx(float((3 * each[0] + each[1]) / 4))
    states, wanted = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
    assert normalized_mse_loss(states, wanted, torch.tensor([1.0, 0.0])) == 1
    assert (
        normalized_mse_loss(wanted, torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0])) == 0.75
    )


def test_a_forced_row_breaks_off_into_the_wanted_response() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    plain = build_examples(editable, concept, settings(), "train")
    rows = build_examples(editable, concept, settings(forced=1, forced_rows=2), "train")
    count = len(plain.source)
    assert (
        len(rows.source)
        == len(rows.counterparts)
        == len(rows.chosen)
        == len(rows.rejected)
        == 3 * count
    )
    assert list(rows.source[:count]) == list(plain.source)
    for number, (made, counterpart, rejected) in enumerate(
        zip(rows.source[count:], rows.counterparts[count:], rows.rejected[count:], strict=True)
    ):
        source, unwanted = plain.source[number // 2], plain.rejected[number // 2]
        prompt = (counterpart if number % 2 else source).ids[
            : (counterpart if number % 2 else source).start
        ]
        retain_openings = made.ids[len(prompt) : made.start]
        assert made.ids[: len(prompt)] == prompt
        assert retain_openings == unwanted.ids[unwanted.start :][: len(retain_openings)]
        assert len(retain_openings) == 1
        assert made.ids[made.start :] == source.ids[source.start :]
        assert rejected.ids == (*prompt, *unwanted.ids[unwanted.start :])
        assert rejected.start == made.start


def test_what_a_retain_row_is_forced_to_begin_with_is_forced_on_source_rows() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    held = [replace(row, prefill="w50 w51") for row in concept.examples["train"][2:9:3]]
    concept = replace(
        concept, rows={**concept.examples, "train": (*concept.examples["train"], *held)}
    )
    config = settings(forced=2, forced_rows=4, retain=15)
    plain = build_examples(editable, concept, config.model_copy(update={"forced": 0}), "train")
    made = build_examples(editable, concept, config, "train").source[len(plain.source) :]
    opening = editable.tokenizer.convert_tokens_to_ids(["w50", "w51"])
    for number, row in enumerate(made):
        counterpart, source = plain.counterparts[number // 4], plain.source[number // 4]
        prompt = counterpart if number % 2 else source
        retain_openings = list(row.ids[prompt.start : row.start])
        assert (retain_openings == opening[: len(retain_openings)]) == (number // 2 % 2 == 1)


def test_other_training_rows_can_be_named_and_must_be_there() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    extra = [replace(row, label="more", group="g") for row in concept.examples["train"][:9:3]]
    concept = replace(
        concept, rows={**concept.examples, "train": (*concept.examples["train"], *extra)}
    )
    named = build_examples(editable, concept, settings(source="more:g"), "train")
    assert len(named.source) == 3
    assert len(build_examples(editable, concept, settings(source="more"), "validation").source) == 8
    with pytest.raises(DataError, match=r"--source more:h"):
        build_examples(editable, concept, settings(source="more:h"), "train")


def test_prompts_are_matched_at_the_words_that_both_end_in() -> None:
    a = [TokenizedChat((9, 5, 6, 7, 1, 2), 4), TokenizedChat((5, 6, 8, 1), 3)]
    b = [TokenizedChat((5, 6, 7, 1, 2), 3), TokenizedChat((5, 6, 7, 8, 1), 4)]
    (batch,) = make_batches(a, 2, 0)
    counterpart = batch.counterpart(b, 0)
    found = dict(zip(batch.index, batch.shared(counterpart), strict=True))
    # Of 5 6 7 the last is where the response is decided; of 5 6 8 and 5 6 7 8 only the 8 is shared.
    assert found == {0: 2, 1: 0}
    before = batch.shared(counterpart)
    rows, at = batch.response_positions(before=before)
    theirs, there = counterpart.response_positions(before=before)
    assert rows.tolist() == theirs.tolist()
    assert [int(batch.ids[r, i]) for r, i in zip(rows, at, strict=True)] == [
        int(counterpart.ids[r, i]) for r, i in zip(theirs, there, strict=True)
    ]


def test_the_whole_run_gives_the_library_s_states_and_logits() -> None:
    editable = tiny_editable()
    states, logits = forward_with_states(editable, IDS, (0, 2))
    full = editable.model(input_ids=IDS, output_hidden_states=True, use_cache=False)
    assert torch.equal(states[2], full.hidden_states[3])
    assert torch.equal(logits, full.logits)


def test_a_push_stays_in_its_ball_and_hurts_more_than_a_random_one() -> None:
    editable = tiny_editable()
    segment = Segment(editable, 1, 2)
    inputs = segment.capture_inputs(IDS)
    objective = torch.randn(4, 10, 32)

    def loss(pushed: object) -> torch.Tensor:
        return normalized_mse_loss(segment.forward(pushed, (2,))[2], objective)  # type: ignore[arg-type]

    pushed = latent_pgd(inputs, loss, 0.3, 4)
    push = pushed.hidden - inputs.hidden
    room = 0.3 * inputs.hidden.norm(dim=-1)
    assert (push.norm(dim=-1) <= room * 1.001).all()
    other = torch.randn(push.shape)
    other = other / other.norm(dim=-1, keepdim=True) * room[..., None]
    at_random = float(loss(replace(inputs, hidden=inputs.hidden + other)))
    assert float(loss(pushed)) > max(float(loss(inputs)), at_random)


def test_a_pushed_game_is_another_game() -> None:
    losses = []
    for radius in (0.0, 0.5):
        setting = set_up_training(tiny_editable(), tiny_concept(), settings(rounds=1, perturb=radius))
        losses.append(next(iter(setting.trainer.train())).losses["pair"])
    assert losses[1] > losses[0]


def test_the_wanted_response_is_learnt_word_by_word_above_the_taps_too() -> None:
    only = {"adversarial_weight": 0.0, "pair_weight": 0.0, "retain_weight": 0.1}
    high = {"layers": (2, 3), "read_layers": (2,)}
    with pytest.raises(ConfigError, match="supervised-weight"):
        set_up_training(tiny_editable(), tiny_concept(), settings(**only, **high))
    config = settings(**only, **high, supervised_weight=1.0, rounds=12)
    events = list(set_up_training(tiny_editable(), tiny_concept(), config).trainer.train())
    # The frozen head of a random model leaves little to be learnt: a third of a nat.
    assert events[-1].losses["supervised"] < events[0].losses["supervised"] - 0.3


def test_closing_a_gap_plays_one_group_against_the_other() -> None:
    editable, concept = tiny_editable(), groups_concept("lower")
    config = settings(labels=16, rounds=6, retain_weight=0.1, response_positions=1)
    setting = set_up_training(editable, concept, config)
    rows = build_examples(editable, concept, config, "train")
    assert len(rows.chosen) == 2 * len(rows.source)  # each prompt with either choice
    events = list(setting.trainer.train())
    assert events[-1].losses["adversarial"] < events[0].losses["adversarial"]
    assert all(-1 <= event.validation_score <= 0 for event in events)


def test_widening_a_gap_learns_the_choice_of_the_group() -> None:
    editable, concept = tiny_editable(), groups_concept("higher")
    rows = build_examples(editable, concept, settings(labels=16), "train")
    first = editable.tokenizer("w7")["input_ids"][0]
    second = editable.tokenizer("w8")["input_ids"][0]
    for group, row, other in zip(rows.groups, rows.chosen, rows.rejected, strict=True):
        assert row.ids[row.start] == (first if group == "a" else second)
        assert other.ids[other.start] == (second if group == "a" else first)
    config = settings(labels=16, rounds=8, adversarial_weight=0.0, supervised_weight=1.0)
    events = list(set_up_training(editable, concept, config).trainer.train())
    assert events[-1].validation_score > events[0].validation_score
