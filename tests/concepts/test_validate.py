"""Problems of a concept's data are found before an edit; a valid concept has no errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.location import SourceLocation
from retouch.concepts.registry import builtin_names, load_concept
from retouch.concepts.validate import validate
from retouch.core.finding import Finding, Level
from retouch.core.types import SPLITS, Message, Split


def example(prompt: str, label: str, **more: object) -> Example:
    return Example((Message("user", prompt),), label, **more)


def examples(split: Split) -> tuple[Example, ...]:
    return tuple(
        example(f"{split} {label} {i}", label, pair=f"{split}-{i}", entity=f"{split}-{i}")
        for label in ("red", "blue", "rest")
        for i in range(4)
    )


VALID = Concept(
    name="colour",
    title="Colour",
    description="Red or blue.",
    examples={split: examples(split) for split in SPLITS},
    directions={"raise": DirectionSpec(("red",), ("blue",), ("rest",))},
    metrics=(MetricSpec("colour", "red", ("red",), "answer"),),
)


def with_examples(split: Split, *more: Example, without: str = "") -> Concept:
    rest = tuple(one for one in VALID.examples[split] if one.label != without)
    return replace(VALID, examples={**VALID.examples, split: rest + more})


def find(concept: Concept, code: str) -> Finding:
    (finding,) = [one for one in validate(concept) if one.code == code]
    return finding


def errors(concept: Concept) -> list[Finding]:
    return [finding for finding in validate(concept) if finding.level == "error"]


def test_a_valid_concept_has_its_examples_counted_and_no_other_finding() -> None:
    findings = validate(VALID)
    assert [(one.level, one.code) for one in findings] == [("ok", "examples")] * 3
    assert "train: 4 blue, 4 red, 4 rest." in [finding.message for finding in findings]


def test_one_training_example_of_a_class_is_an_error_and_few_are_a_warning() -> None:
    one = replace(
        VALID,
        examples={
            **VALID.examples,
            "train": (
                *(one for one in VALID.examples["train"] if one.label != "red"),
                example("the only one", "red"),
            ),
        },
    )
    assert find(one, "one-example").level == "error"
    assert "1 of 9 source examples" in find(one, "one-example").message
    few = {split: VALID.examples[split] if split != "test" else () for split in SPLITS}
    found = [each for each in validate(replace(VALID, examples=few)) if each.code == "few-examples"]
    assert [each.level for each in found] == ["warning", "warning"]


def test_prompts_are_compared_after_normalisation_and_both_rows_are_named() -> None:
    first, second = SourceLocation("train.jsonl", 7), SourceLocation("test.jsonl", 3)
    shared = replace(with_examples("train", example("New  ONE", "red", location=first)))
    copies = (*VALID.examples["test"], example("new one", "red", location=second))
    concept = replace(shared, examples={**shared.examples, "test": copies})
    message = find(concept, "prompt-shared").message
    assert "train.jsonl, line 7" in message
    assert "test.jsonl, line 3" in message


def test_findings_are_ordered_by_level() -> None:
    concept = with_examples(
        "train",
        example("validation red 1", "red", pair="odd"),  # a prompt of another split, half a pair
    )
    levels = [finding.level for finding in validate(concept)]
    assert levels == sorted(levels, key=["error", "warning", "ok"].index)
    assert {"error", "warning", "ok"} == set(levels)


def test_an_entity_in_two_splits_is_an_error_within_one_label() -> None:
    shared = find(with_examples("test", example("new", "red", entity="train-2")), "entity-shared")
    assert shared.level == "error"
    for part in ("`red`", "train", "test", "`train-2`"):
        assert part in shared.message
    assert not errors(with_examples("test", example("new", "other", entity="train-2")))


def test_a_prompt_in_two_splits_is_an_error_for_all_labels() -> None:
    concept = with_examples("validation", example("train red 1", "blue"))
    shared = find(concept, "prompt-shared")
    assert shared.level == "error"
    for part in ("train", "validation", "`train red 1`"):
        assert part in shared.message


def test_a_group_in_two_splits_is_information() -> None:
    examples = {
        split: (*VALID.examples[split], example(f"{split} g", "red", group="roleplay"))
        for split in SPLITS
    }
    concept = replace(VALID, examples=examples)
    assert not errors(concept)
    found = [finding for finding in validate(concept) if finding.code == "group-shared"]
    assert len(found) == 3
    assert all(one.level == "ok" and "`roleplay`" in one.message for one in found)


@pytest.mark.parametrize(
    ("split", "label", "level"),
    [
        ("train", "red", "error"),
        ("validation", "blue", "error"),
        ("test", "blue", "warning"),
        ("train", "rest", "warning"),
    ],
)
def test_a_set_without_examples(split: Split, label: str, level: Level) -> None:
    missing = find(with_examples(split, without=label), "examples-missing")
    assert missing.level == level
    assert split in missing.message
    assert f"({label})" in missing.message


def test_a_concept_without_directions_is_valid() -> None:
    assert find(replace(VALID, directions={}), "no-directions").level == "ok"


def test_a_pair_without_a_target_example_is_a_warning() -> None:
    found = find(with_examples("train", example("alone", "red", pair="odd")), "pair-incomplete")
    assert found.level == "warning"
    assert "1 of 5 pairs in train" in found.message
    assert "`odd`" in found.message


def test_unbalanced_sets_are_a_warning() -> None:
    more = (example(f"more {i}", "red") for i in range(9))
    found = find(with_examples("train", *more), "unbalanced")
    assert found.level == "warning"
    assert "13 source and 4 target" in found.message


def test_responses_of_different_lengths_are_a_warning() -> None:
    concept = with_examples(
        "train",
        example("long", "red", response="a b c d e f g h", pair="p"),
        example("short", "blue", response="a b", pair="p"),
    )
    assert find(concept, "response-lengths-differ").level == "warning"
    lengths = [one.message for one in validate(concept) if one.code == "response-lengths"]
    assert any("8 to 8 words" in message for message in lengths)


def test_a_metric_without_the_examples_that_it_needs_is_found() -> None:
    correct = MetricSpec("colour", "right", ("red",), "correct")
    gap = MetricSpec("colour", "gap", ("red",), "group_gap", choices=("a", "b"), groups=("x", "y"))
    unseen = MetricSpec("colour", "none", ("green",), "answer")
    concept = replace(VALID, metrics=(correct, gap, unseen))
    accept = find(concept, "accept-missing")
    assert accept.level == "error"
    assert "colour.right: 4 of 4" in accept.message
    group = find(concept, "group-missing")
    assert group.level == "error"
    assert "colour.gap" in group.message
    assert "`x`, `y`" in group.message
    missing = find(concept, "metric-examples-missing")
    assert missing.level == "warning"
    assert "colour.none" in missing.message


def test_a_concept_without_metrics_is_a_warning() -> None:
    assert find(replace(VALID, metrics=()), "no-metrics").level == "warning"


def test_accept_of_some_source_examples_only_is_a_warning() -> None:
    concept = with_examples("train", example("new", "negative", accept=("x",)))
    assert find(concept, "correct-not-measured").level == "warning"


@pytest.mark.parametrize("name", builtin_names())
def test_the_built_in_concepts_have_no_errors(name: str) -> None:
    assert errors(load_concept(name)) == []
