"""A user's file, lists of prompts and datasets become concepts; their splits are stable."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.concepts.concept import Concept, Context, Example
from retouch.concepts.examples import LocatedExample
from retouch.concepts.location import SourceLocation
from retouch.concepts.registry import concept_for_model
from retouch.concepts.splits import split_examples
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Message

LABELS = ("positive", "negative")


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def two_labels(count: int = 10, **more: object) -> list[dict[str, object]]:
    return [
        {"prompt": f"{label} {i}", "label": label, **more} for label in LABELS for i in range(count)
    ]


def located(keys: list[tuple[str, str | None, str]]) -> list[LocatedExample]:
    return [
        LocatedExample(
            Example((Message("user", f"{i}"),), label, pair=pair, entity=entity),
            SourceLocation("a.csv", i),
        )
        for i, (label, pair, entity) in enumerate(keys)
    ]


def prompts(count: int, name: str) -> list[str]:
    return [f"{name} {i}" for i in range(count)]


def texts(concept: Concept, label: str) -> set[str]:
    return {
        example.prompt[-1].content for split in SPLITS for example in concept.select(split, [label])
    }


keys = st.tuples(
    st.sampled_from(LABELS),
    st.one_of(st.none(), st.sampled_from("pqrstu")),
    st.sampled_from(["", "a", "b", "c", "d", "e"]),
)


@given(st.lists(keys, max_size=30), st.randoms())
def test_splits_are_complete_disjoint_and_independent_of_the_order(
    values: list[tuple[str, str | None, str]], rng: random.Random
) -> None:
    examples = located(values)
    splits = split_examples(examples)
    assert sum(map(len, splits.values())) == len(examples)
    for kind in ("pair", "entity"):
        found = [{getattr(one, kind) for one in splits[split]} - {None, ""} for split in SPLITS]
        assert sum(map(len, found)) == len(set().union(*found))
    shuffled = list(examples)
    rng.shuffle(shuffled)
    again = split_examples(shuffled)
    assert {s: set(splits[s]) for s in SPLITS} == {s: set(again[s]) for s in SPLITS}


def test_each_label_of_a_file_is_split_60_20_20(tmp_path: Path) -> None:
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", two_labels(10)))
    for label in LABELS:
        assert [len(concept.select(split, [label])) for split in SPLITS] == [6, 2, 2]


def test_the_column_split_is_followed(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{label} {split}", "label": label, "split": split}
        for label in LABELS
        for split in SPLITS
    ]
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    for split in SPLITS:
        chosen = concept.select(split, LABELS)
        assert {one.prompt[0].content.split()[1] for one in chosen} == {split}


def test_the_concept_of_a_file(tmp_path: Path) -> None:
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", two_labels(10)))
    assert concept.name == "mine"
    assert concept.directions["raise"].source == concept.directions["lower"].target == ("negative",)
    assert concept.directions["raise"].target == concept.directions["lower"].source == ("positive",)
    assert concept.directions["raise"].retain == ()
    assert concept.add_ordinary
    assert {metric.suite for metric in concept.metrics} == {"mine"}
    assert "correct" not in {metric.scorer for metric in concept.metrics}


def test_correct_is_measured_where_all_source_examples_have_accept(tmp_path: Path) -> None:
    rows = two_labels(10, accept=["yes"])
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    assert "correct" in {metric.scorer for metric in concept.metrics if metric.suite == "mine"}


def test_the_retain_examples_of_a_file_replace_the_built_in_ones(tmp_path: Path) -> None:
    rows = two_labels(10) + [{"prompt": f"r {i}", "label": "retain"} for i in range(10)]
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    concept = concept_for_model(concept, "pocket")
    assert concept.directions["lower"].retain == ("retain",)
    assert concept.select("test", ["task"])  # the drift on built-in examples is still measured
    assert {metric.suite for metric in concept.metrics} == {"mine", "capability", "drift"}


def test_a_pair_may_be_incomplete(tmp_path: Path) -> None:
    rows = [{**row, "pair": f"{i}"} for i, row in enumerate(two_labels(10))]
    assert Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))


@pytest.mark.parametrize(
    ("rows", "code", "parts"),
    [
        (two_labels()[:10], "too-few-examples", ["`negative`", " 0 ", "10"]),
        (two_labels()[10:], "too-few-examples", ["`positive`", " 0 ", "10"]),
        ([{"prompt": "a", "label": "retain"}], "too-few-examples", ["`negative`", " 0 "]),
        (two_labels(1), "too-few-examples", ["`negative`", " 1 ", "validation"]),
        (two_labels(20, entity="one"), "too-few-examples", ["`negative`", " 20 ", "entities"]),
        (two_labels(9, split="test"), "split-empty", ["`negative`", " 9 ", "`train`"]),
        (two_labels(9, split="train"), "split-empty", ["`validation`"]),
    ],
)
def test_too_few_examples_of_a_label_in_a_file_are_an_error(
    tmp_path: Path, rows: list[dict[str, object]], code: str, parts: list[str]
) -> None:
    path = jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError) as raised:
        Concept.from_file(path)
    assert raised.value.code == code
    for part in [str(path), *parts]:
        assert part in str(raised.value)
    assert raised.value.hint


def test_lists_of_prompts_are_paired_by_index() -> None:
    concept = Concept.from_pairs(prompts(10, "source"), prompts(10, "target"), name="mine")
    assert concept.name == "mine"
    assert [len(concept.select(split, ["negative"])) for split in SPLITS] == [6, 2, 2]
    for split in SPLITS:
        source = {one.pair: one for one in concept.select(split, ["negative"])}
        target = {one.pair: one for one in concept.select(split, ["positive"])}
        assert source.keys() == target.keys()
        for pair, example in source.items():
            number = example.prompt[0].content.removeprefix("source")
            assert target[pair].prompt[0].content == f"target{number}"
    spec = concept.directions["raise"]
    assert (spec.source, spec.target, spec.retain) == (("negative",), ("positive",), ())


def test_the_split_of_pairs_does_not_depend_on_their_order() -> None:
    source, target = prompts(10, "source"), prompts(10, "target")
    concept = Concept.from_pairs(source, target)
    reordered = Concept.from_pairs(source[::-1], target[::-1])
    for split in SPLITS:
        assert set(concept.examples[split]) == set(reordered.examples[split])


def test_entries_may_have_the_columns_of_a_file() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "source chat"},
    ]
    entry = {"prompt": turns, "prefill": "Sure,", "accept": ["yes"], "group": "g", "entity": "e"}
    concept = Concept.from_pairs(
        [*prompts(9, "source"), entry],
        [*prompts(9, "target"), {"prompt": "target chat", "response": "No."}],
        [*prompts(10, "retain")],
    )
    (chat,) = [one for split in SPLITS for one in concept.examples[split] if one.group == "g"]
    assert [(turn.role, turn.content) for turn in chat.prompt] == [tuple(t.values()) for t in turns]
    assert (chat.prefill, chat.accept, chat.entity) == ("Sure,", ("yes",), "e")
    (other,) = [one for split in SPLITS for one in concept.examples[split] if one.response]
    assert other.pair == chat.pair
    assert concept.directions["raise"].retain == ("retain",)
    assert texts(concept, "retain") == set(prompts(10, "retain"))


SOURCE, TARGET = prompts(10, "source"), prompts(10, "target")


def at(index: int, entry: Any, entries: list[str] = SOURCE) -> list[Any]:
    return [*entries[:index], entry, *entries[index + 1 :]]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ((SOURCE, TARGET[:9]), "length-mismatch", ["`source`", "10", "`target`", "9"]),
        (([], []), "too-few-examples", ["`source`", " 0 "]),
        ((SOURCE[:1], TARGET[:1]), "too-few-examples", ["`source`", " 1 "]),
        ((SOURCE, TARGET, ["one"]), "too-few-examples", ["`retain`", " 1 "]),
        (("one text", TARGET), "argument-type", ["`source`", "a text"]),
        ((SOURCE, {"prompt": "x"}), "argument-type", ["`target`", "an object"]),
        ((SOURCE, 3), "argument-type", ["`target`", "the number 3"]),
        ((at(3, 7), TARGET), "value-type", ["source[3]", "the number 7"]),
        ((at(3, ["a", "b"]), TARGET), "value-type", ["source[3]", "a list"]),
        ((at(3, " "), TARGET), "prompt-empty", ["source[3]"]),
        ((at(3, "\ud800"), TARGET), "surrogate", ["source[3]", "`prompt`"]),
        ((at(3, "source 1"), TARGET), "example-duplicate", ["source[3]", "source[1]"]),
        ((at(3, {"response": "x"}), TARGET), "column-missing", ["source[3]", "`prompt`"]),
        (
            (at(3, {"prompt": "x", "respons": "y"}), TARGET),
            "column-unknown",
            ["source[3]", "`respons`", "Did you mean `response`?"],
        ),
        ((at(3, {"prompt": "x", "label": "y"}), TARGET), "column-unknown", ["`label`"]),
        ((SOURCE, at(2, {"prompt": 5}, TARGET)), "value-type", ["target[2]", "`prompt`", "5"]),
        ((at(3, {"prompt": "x", "split": "train"}), TARGET), "split-missing", ["source[0]"]),
        ((SOURCE, TARGET, at(0, {"prompt": "x", "split": "dev"})), "split-unknown", ["retain[0]"]),
    ],
)
def test_a_mistake_in_a_list_is_reported_with_its_index(
    arguments: tuple[Any, ...], code: str, parts: list[str]
) -> None:
    with pytest.raises(DataError) as raised:
        Concept.from_pairs(*arguments)
    assert raised.value.code == code
    for part in parts:
        assert part in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize("name", ["", " ", "\ud800", None, 3])
def test_a_name_must_be_a_text(name: Any) -> None:
    with pytest.raises(DataError, match="`name`") as raised:
        Concept.from_pairs(SOURCE, TARGET, name=name)
    assert raised.value.code == "argument-type"


def test_given_splits_of_a_list_are_followed() -> None:
    def entries(name: str) -> list[dict[str, str]]:
        return [{"prompt": f"{name} {split}", "split": split} for split in SPLITS]

    concept = Concept.from_pairs(entries("source"), entries("target"), entries("retain"))
    for split in SPLITS:
        (example,) = concept.select(split, ["negative"])
        assert example.prompt[0].content == f"source {split}"


# Given responses, contexts, few examples.


def responses_of(concept: Concept, label: str) -> dict[str, str | None]:
    return {
        example.prompt[-1].content: example.response
        for split in SPLITS
        for example in concept.select(split, [label])
    }


def test_source_prompts_may_have_responses_in_place_of_target_prompts() -> None:
    given = [f"answer {i}" for i in range(10)]
    concept = Concept.from_pairs(SOURCE, responses=given)
    assert responses_of(concept, "positive") == dict(zip(SOURCE, given, strict=True))
    assert responses_of(concept, "negative") == dict.fromkeys(SOURCE)
    assert list(concept.directions) == ["raise"]
    for split in SPLITS:
        source = {one.pair: one.prompt for one in concept.select(split, ["negative"])}
        assert source == {one.pair: one.prompt for one in concept.select(split, ["positive"])}
    assert [len(concept.select(split, ["negative"])) for split in SPLITS] == [6, 2, 2]


def test_target_prompts_get_the_given_responses() -> None:
    given = [f"answer {i}" for i in range(10)]
    concept = Concept.from_pairs(SOURCE, TARGET, responses=given)
    assert responses_of(concept, "positive") == dict(zip(TARGET, given, strict=True))


def test_a_context_alone_elicits_the_target_of_the_same_prompts() -> None:
    context = Context(system="Be brief.")
    concept = Concept.from_pairs(SOURCE, context=context)
    assert concept.directions.keys() == {"raise"}
    assert concept.directions["raise"].context == context
    assert responses_of(concept, "positive") == dict.fromkeys(SOURCE)


def test_a_file_with_target_responses_needs_no_positive_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q {i}", "label": "negative", "target_response": f"a {i}"} for i in range(8)
    ]
    concept = Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    assert responses_of(concept, "positive") == {f"q {i}": f"a {i}" for i in range(8)}
    assert concept == Concept.from_file(tmp_path / "mine.jsonl")
    del rows[3]["target_response"]
    with pytest.raises(DataError, match="line 4, column `target_response`") as raised:
        Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    assert raised.value.code == "target-missing"


def test_a_file_under_a_context_needs_no_positive_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "label": "negative"} for i in range(8)]
    path = jsonl(tmp_path / "mine.jsonl", [*rows, {**rows[0], "prompt": "r", "label": "retain"}])
    with pytest.raises(DataError, match="target_response"):
        Concept.from_file(path)
    path = jsonl(path, rows)
    context = Context(prefix="Sure,")
    concept = Concept.from_file(path, context=context)
    assert concept.directions["raise"].context == context
    assert responses_of(concept, "positive").keys() == {f"q {i}" for i in range(8)}


def test_three_labels_are_one_for_each_split_and_two_leave_none_to_measure() -> None:
    three = Concept.from_pairs(SOURCE[:3], TARGET[:3])
    assert [len(three.select(split, ["negative"])) for split in SPLITS] == [1, 1, 1]
    two = Concept.from_pairs(SOURCE[:2], responses=["a", "b"])
    assert [len(two.select(split, ["negative"])) for split in SPLITS] == [1, 1, 0]
    assert not two.metrics


@pytest.mark.parametrize(
    ("arguments", "options", "code", "parts"),
    [
        ((SOURCE,), {}, "too-few-examples", ["`target`", " 0 ", "target_response"]),
        ((SOURCE,), {"responses": ["x"]}, "length-mismatch", ["10", "`responses`", "1"]),
        ((SOURCE,), {"responses": "x"}, "argument-type", ["`responses`", "a text"]),
        ((SOURCE,), {"responses": at(4, None)}, "value-type", ["responses[4]", "None"]),
        ((SOURCE,), {"context": Context()}, "context-invalid", ["`context`", "empty"]),
        ((SOURCE,), {"context": "Be brief."}, "argument-type", ["`context`", "Context("]),
        (
            (SOURCE, at(3, {"prompt": "x", "response": "y"}, TARGET)),
            {"responses": SOURCE},
            "response-twice",
            ["source[3]"],
        ),
        (
            (at(3, {"prompt": "x", "target_response": "y"}),),
            {"responses": SOURCE},
            "response-twice",
            ["source[3]"],
        ),
        (
            (SOURCE, at(3, {"prompt": "x", "target_response": "y"}, TARGET)),
            {},
            "target-response",
            ["target[3]", "`target_response`"],
        ),
    ],
)
def test_a_mistake_in_responses_or_context_is_reported(
    arguments: tuple[Any, ...], options: dict[str, Any], code: str, parts: list[str]
) -> None:
    with pytest.raises(DataError) as raised:
        Concept.from_pairs(*arguments, **options)
    assert raised.value.code == code
    for part in parts:
        assert part in str(raised.value)
    assert raised.value.hint


datasets = pytest.importorskip("datasets", reason="datasets, of `compare`, is not installed")


def dataset_of(rows: list[dict[str, object]]) -> Any:
    return datasets.Dataset.from_list(rows)


def test_a_dataset_gives_the_examples_of_a_file_with_the_same_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {
            **row,
            "prompt": [*turns, {"role": "user", "content": row["prompt"]}],
            "accept": ["x", "y"],
            "pair": f"{i % 10}" if i % 3 else None,
        }
        for i, row in enumerate(two_labels(10))
    ]
    concept = Concept.from_dataset(dataset_of(rows), name="mine", description="Mine.")
    from_file = Concept.from_file(jsonl(tmp_path / "mine.jsonl", rows))
    assert concept.examples == from_file.examples
    assert concept.metrics == from_file.metrics
    assert (concept.name, concept.description) == ("mine", "Mine.")


def test_a_dataset_dict_gives_the_splits() -> None:
    parts = {
        split: dataset_of([{"prompt": f"{label} {split}", "label": label} for label in LABELS])
        for split in SPLITS
    }
    concept = Concept.from_dataset(datasets.DatasetDict(parts))
    for split in SPLITS:
        chosen = concept.select(split, LABELS)
        assert {one.prompt[0].content for one in chosen} == {f"{one} {split}" for one in LABELS}


def test_an_iterable_dataset_and_a_class_label_are_accepted() -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS))}
    )
    dataset = datasets.Dataset.from_list(
        [{**row, "label": LABELS.index(str(row["label"]))} for row in two_labels()],
        features=features,
    )
    for data in (dataset, dataset.to_iterable_dataset()):
        assert texts(Concept.from_dataset(data), "negative") == set(prompts(10, "negative"))


@pytest.mark.parametrize(
    ("make", "code", "parts"),
    [
        (lambda: 3, "argument-type", ["`dataset`", "the number 3"]),
        (lambda: dataset_of(two_labels(1)), "too-few-examples", ["`dataset`", "`negative`", " 1 "]),
        (lambda: {"tran": dataset_of(two_labels())}, "split-unknown", ["`tran`", "`train`?"]),
        (lambda: {"train": dataset_of(two_labels())}, "split-empty", ["`validation`"]),
        (lambda: {"train": 3}, "argument-type", ['dataset["train"]']),
        (
            lambda: {"test": dataset_of([{"prompt": "x", "label": "postive"}])},
            "label-unknown",
            ['dataset["test"][0]', "`postive`", "Did you mean `positive`?"],
        ),
        (lambda: [["a", "b"]], "value-type", ["dataset[0]", "a list"]),
    ],
)
def test_a_mistake_in_a_dataset_is_reported_with_its_index(
    make: Callable[[], Any], code: str, parts: list[str]
) -> None:
    with pytest.raises(DataError) as raised:
        Concept.from_dataset(make())
    assert raised.value.code == code
    for part in parts:
        assert part in str(raised.value)
