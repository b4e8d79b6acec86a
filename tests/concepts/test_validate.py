"""What spoils an edit or a score is found in the rows; a sound concept has no errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.registry import builtin_names, load_concept
from retouch.concepts.validate import check
from retouch.core.types import SPLITS, Message, Split


def row(prompt: str, label: str, **more: object) -> Example:
    return Example((Message("user", prompt),), label, **more)


def rows(split: Split) -> tuple[Example, ...]:
    return tuple(
        row(f"{split} {label} {i}", label, pair=f"{split}-{i}", entity=f"{split}-{i}")
        for label in ("red", "blue", "kept")
        for i in range(4)
    )


SOUND = Concept(
    name="colour",
    title="Colour",
    description="Red or blue.",
    rows={split: rows(split) for split in SPLITS},
    directions={"raise": DirectionSpec(("red",), ("blue",), ("kept",))},
    metrics=(MetricSpec("colour", "red", ("red",), "answer"),),
)


def with_rows(split: Split, *more: Example, drop: str = "") -> Concept:
    kept = tuple(one for one in SOUND.rows[split] if one.label != drop)
    return replace(SOUND, rows={**SOUND.rows, split: kept + more})


def texts(concept: Concept, level: str) -> str:
    return "\n".join(finding.text for finding in check(concept) if finding.level == level)


def test_a_sound_concept_has_its_rows_counted_and_nothing_else() -> None:
    assert {finding.level for finding in check(SOUND)} == {"note"}
    assert "train: 4 blue, 4 kept, 4 red." in texts(SOUND, "note")


def test_an_entity_in_two_splits_is_an_error_within_one_label() -> None:
    leak = with_rows("test", row("new", "red", entity="train-2"))
    assert "entities of `red` are in train and test: `train-2`" in texts(leak, "error")
    other = with_rows("test", row("new", "kept-elsewhere", entity="train-2"))
    assert not texts(other, "error")


def test_a_prompt_in_two_splits_is_an_error_whatever_its_label() -> None:
    leak = with_rows("validation", row("train red 1", "blue"))
    assert "prompts are in train and validation: `train red 1`" in texts(leak, "error")


def test_a_group_in_two_splits_is_a_note() -> None:
    shared = {
        split: (*SOUND.rows[split], row(f"{split} g", "red", group="roleplay")) for split in SPLITS
    }
    concept = replace(SOUND, rows=shared)
    assert not texts(concept, "error")
    assert "groups of `red` are in train and test: `roleplay`" in texts(concept, "note")


@pytest.mark.parametrize(
    ("split", "label", "level"),
    [
        ("train", "red", "error"),
        ("validation", "blue", "error"),
        ("test", "blue", "warning"),
        ("train", "kept", "warning"),
    ],
)
def test_a_side_without_rows(split: Split, label: str, level: str) -> None:
    assert f"{split} has no" in texts(with_rows(split, drop=label), level)


def test_a_pair_without_a_target_row_is_a_warning() -> None:
    lonely = with_rows("train", row("alone", "red", pair="odd"))
    assert "1 of 5 pairs in train" in texts(lonely, "warning")
    assert "`odd`" in texts(lonely, "warning")


def test_unbalanced_sides_are_a_warning() -> None:
    many = with_rows("train", *(row(f"more {i}", "red") for i in range(9)))
    assert "13 source and 4 target rows" in texts(many, "warning")


def test_responses_of_other_lengths_are_a_warning() -> None:
    concept = with_rows(
        "train",
        row("long", "red", response="a b c d e f g h", pair="p"),
        row("short", "blue", response="a b", pair="p"),
    )
    assert "learn the length" in texts(concept, "warning")
    assert "8 to 8 words" in texts(concept, "note")


def test_a_metric_without_what_it_needs_is_found() -> None:
    correct = MetricSpec("colour", "right", ("red",), "correct")
    gap = MetricSpec("colour", "gap", ("red",), "gap", choices=("a", "b"), groups=("x", "y"))
    unseen = MetricSpec("colour", "none", ("green",), "answer")
    concept = replace(SOUND, metrics=(correct, gap, unseen))
    assert "colour.right: 4 of 4 test rows progress no `accept`" in texts(concept, "error")
    assert "colour.gap: no test row has the group `x`, `y`" in texts(concept, "error")
    assert "colour.none: test has no rows" in texts(concept, "warning")


@pytest.mark.parametrize("name", builtin_names())
def test_the_built_in_concepts_have_no_errors(name: str) -> None:
    assert texts(load_concept(name), "error") == ""
