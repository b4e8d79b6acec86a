"""The rows of a suite: where they are read from, which are used, and what their slots mean."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retouch.concepts.concept import Concept
from retouch.core.errors import ConfigError, DataError
from retouch.suites.registry import load_suite_concept

ASK = 'prompt: "{q}"\nbetter: lower\n'
FILE = "sources: [{file: data.jsonl}]\n"
CSV = "sources: [{file: data.csv}]\n"


def prompts(concept: Concept) -> list[str]:
    return [example.prompt[-1].content for example in concept.examples["test"]]


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"q": f"Is {i} even?"} for i in range(count)]


def numbers(concept: Concept) -> list[int]:
    """The numbers in the prompts of numbered rows."""
    return [int(text.split()[1]) for text in prompts(concept)]


# Slots.


@pytest.mark.parametrize(
    ("row", "text", "expected"),
    [
        ({"goal": "Sew."}, "{goal|prompt}", "Sew."),
        ({"prompt": "Sew."}, "{goal|prompt}", "Sew."),
        ({"goal": None, "prompt": "Sew."}, "{goal|prompt}", "Sew."),
        ({"goal": "Sew.", "prompt": "Knit."}, "{ goal | prompt }", "Sew."),
        ({"goal": "", "prompt": "Knit."}, "Do: {goal|prompt}x", "Do: x"),
        ({"ContextString": "Sew."}, "{context_string}", "Sew."),
        ({"context string": "Sew."}, "{Context-String}", "Sew."),
        ({"CONTEXT_STRING": "Sew."}, "{contextstring}", "Sew."),
        ({"choices": ["red", "blue"]}, "A {choices.0}, B {choices.1}", "A red, B blue"),
        ({"targets": {"First Choice": ["red"]}}, "{Targets.first_choice.0}", "red"),
        ({"words": ["red", 2]}, "{words}", "red 2"),
        ({"n": 3, "yes": True}, "{n} {yes}", "3 True"),
        ({"a": "{b}", "b": "{a}"}, "{a}{b}", "{b}{a}"),
        ({"a": "Sew."}, "{}{a}{", "{}Sew.{"),
    ],
)
def test_a_slot_is_the_value_of_its_column(
    folder: Any, row: dict[str, Any], text: str, expected: str
) -> None:
    suite = f"{FILE}prompt: {text!r}\nbetter: lower\n"
    folder.write("data.jsonl", [row])
    assert prompts(folder.load(suite)) == [expected]


@pytest.mark.parametrize("slot", ["qq", "q|qq|qqq", "choices.2", "choices.-1", "targets.b", "q.a"])
def test_a_slot_without_a_column_is_an_error_with_its_place(folder: Any, slot: str) -> None:
    rows = [
        {"q": "Sew.", "choices": ["a", "b", "c"], "targets": {"b": "x"}, "qq": "x"},
        {"choices": ["a", "b"], "targets": {}},
    ]
    if slot == "q.a":
        rows = [{"q": {"a": "Sew."}}, {"q": "Sew."}]
    elif slot == "choices.-1":
        rows[0]["choices"] = {"-1": "x"}
    with pytest.raises(DataError) as error:
        folder.load(f'prompt: "{{{slot}}}"\nbetter: lower\n', *rows)
    assert error.value.code == "column-missing"
    assert "data.jsonl, line 2: " in error.value.message
    assert f"`{slot}`" in error.value.message
    assert all(f"`{name}`" in error.value.hint for name in rows[1])


# Which rows are used.


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("{n: 1}", [1]),
        ("{n: [1, 3]}", [1, 3]),
        ("{N: '1'}", [1]),
        ("{n: 2, kind: even}", [2]),
        ("{kind: odd}", [1, 3]),
        ("{kind: [odd, even]}", [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_rows_are_chosen_by_their_values(
    folder: Any, name: str, where: str, expected: list[int]
) -> None:
    rows = [{"q": f"Is {n} even?", "n": n, "kind": "odd" if n % 2 else "even"} for n in range(1, 4)]
    folder.write(name, rows)
    assert numbers(folder.load(f"sources: [{{file: {name}, where: {where}}}]\n{ASK}")) == expected


@pytest.mark.parametrize(("where", "code"), [("{n: 7}", "suite-empty"), ("{m: 1}", "column")])
def test_a_choice_without_rows_is_an_error(folder: Any, where: str, code: str) -> None:
    folder.write("data.csv", [{"q": "Sew.", "n": 1}])
    with pytest.raises(DataError, match=r"data\.csv") as error:
        folder.load(f"sources: [{{file: data.csv, where: {where}}}]\n{ASK}")
    assert error.value.code.startswith(code)
    assert where[1] in error.value.message


def test_the_elements_of_lists_become_rows(folder: Any) -> None:
    rows = [{"q": ["Sew.", "Knit."], "kind": ["a", "b"]}, {"q": ["Cook."], "kind": ["c"]}]
    concept = folder.load(f'explode: [q, kind]\ngroup: "{{kind}}"\n{ASK}', *rows)
    assert prompts(concept) == ["Sew.", "Knit.", "Cook."]
    assert [example.group for example in concept.examples["test"]] == ["a", "b", "c"]


def test_the_elements_of_nested_lists_become_rows(folder: Any) -> None:
    rows = [{"id": "x", "s": {"Text": ["Sew.", "Knit."], "kind": [1, 0]}, "q": "?"}]
    text = 'explode: [s.text, s.kind]\nprompt: "{id} {s.text} {s.kind} {q}"\nbetter: lower\n'
    assert prompts(folder.load(text, *rows)) == ["x Sew. 1 ?", "x Knit. 0 ?"]


@pytest.mark.parametrize("kind", ["a", ["a"], ["a", "b", "c"]])
def test_lists_of_unequal_length_are_an_error(folder: Any, kind: Any) -> None:
    with pytest.raises(DataError, match="line 1: `q` and `kind`") as error:
        folder.load(f"explode: [q, kind]\n{ASK}", {"q": ["Sew.", "Knit."], "kind": kind})
    assert error.value.code == "column-list"


@pytest.mark.parametrize(
    ("sample", "limit", "expected"),
    [
        ("[]", None, list(range(10))),
        ("{count: 5}", None, [0, 2, 4, 6, 8]),
        ("{count: 3}", None, [0, 3, 6]),
        ("{count: 99}", None, list(range(10))),
        ("[]", 2, [0, 5]),
        ("[]", 99, list(range(10))),
        ("{count: 5}", 2, [0, 4]),
        ("[{count: 5}, {count: 2}]", None, [0, 4]),
        ("{count: 99, seed: 1}", None, list(range(10))),
    ],
)
def test_a_sample_and_a_limit_are_evenly_spaced(
    folder: Any, sample: str, limit: int | None, expected: list[int]
) -> None:
    concept = folder.load(f"sample: {sample}\n{ASK}", *numbered(10), limit=limit)
    assert numbers(concept) == expected


def test_a_random_sample_is_the_same_every_time_and_contains_the_smaller_ones(folder: Any) -> None:
    def sampled(sample: str) -> list[int]:
        return numbers(folder.load(f"sample: {sample}\n{ASK}", *numbered(60)))

    large = sampled("{count: 20, seed: 0}")
    assert large == sampled("{count: 20, seed: 0}") == sorted(set(large))
    assert large != sampled("{count: 20, seed: 1}")
    assert len(large) == 20
    small = sampled("[{count: 20, seed: 0}, {count: 5}]")
    assert small == large[::4]


# Where rows are read from.


def test_the_first_file_at_hand_is_used_with_its_own_texts(folder: Any) -> None:
    suite = (
        'sources:\n  - {file: own.jsonl, prompt: "Own: {q}", system: "{s}"}\n'
        "  - {file: data.csv}\n  - {dataset: nobody/nothing}\n"
        f"system: Be brief.\n{ASK}"
    )
    folder.write("data.csv", [{"q": "Sew."}])
    (example,) = folder.load(suite).examples["test"]
    assert [(turn.role, turn.content) for turn in example.prompt] == [
        ("system", "Be brief."),
        ("user", "Sew."),
    ]
    folder.write("own.jsonl", [{"q": "Knit.", "s": ""}, {"q": "Cook.", "s": "Be kind."}])
    first, second = folder.load(suite).examples["test"]
    assert [turn.content for turn in first.prompt] == ["Own: Knit."]
    assert [turn.content for turn in second.prompt] == ["Be kind.", "Own: Cook."]


def test_the_data_folder_comes_before_that_of_the_suite(folder: Any) -> None:
    file = folder.suite(f"sources: [{{file: sub/data.jsonl}}]\n{ASK}")
    folder.write("sub/data.jsonl", [{"q": "beside the suite"}])
    folder.write("given/sub/data.jsonl", [{"q": "in the data folder"}])
    assert prompts(load_suite_concept(file)) == ["beside the suite"]
    assert prompts(load_suite_concept(file, folder.path / "given")) == ["in the data folder"]
    (folder.path / "given/sub/data.jsonl").unlink()
    assert prompts(load_suite_concept(file, str(folder.path / "given"))) == ["beside the suite"]


def test_files_that_are_not_at_hand_are_listed(folder: Any) -> None:
    file = folder.suite(f"sources: [{{file: a.csv}}, {{file: b.jsonl}}]\n{ASK}")
    (folder.path / "data").mkdir()
    with pytest.raises(DataError, match="mine") as error:
        load_suite_concept(file, folder.path / "data")
    assert error.value.code == "suite-data-missing"
    assert str(folder.path / "data") in error.value.message
    assert "a.csv or b.jsonl" in error.value.hint


@pytest.mark.parametrize("name", ["none", "mine.yaml"])
def test_the_data_folder_must_be_a_folder(folder: Any, name: str) -> None:
    file = folder.suite(FILE + ASK)
    with pytest.raises(DataError, match=f"`data_dir`.*{name}") as error:
        load_suite_concept(file, folder.path / name)
    assert error.value.code == "suite-data-missing"


def test_a_file_name_that_no_system_allows_is_not_at_hand(folder: Any) -> None:
    with pytest.raises(DataError) as error:
        folder.load(f"sources: [{{file: {'a' * 300}.csv}}]\n{ASK}")
    assert error.value.code == "suite-data-missing"


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "file-empty"), ("q\n", "file-empty"), ("q,q\na,b\n", "column-duplicate")],
)
def test_a_file_without_rows_is_an_error(folder: Any, text: str, code: str) -> None:
    folder.write("data.csv", text)
    with pytest.raises(DataError, match=r"data\.csv") as error:
        folder.load(CSV + ASK)
    assert error.value.code == code


def test_a_csv_file_keeps_its_texts(folder: Any) -> None:
    # `accept` is a list in the files of concepts alone.
    folder.write("data.csv", '\ufeffQ,accept\n"One, two\nand ""three""",a|b\n')
    (example,) = folder.load(f'{CSV}accept: "{{accept}}"\n{ASK}').examples["test"]
    assert (example.prompt[0].content, example.accept) == ('One, two\nand "three"', ("a|b",))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The library `datasets`, with a cache of its own."""
    found = importlib.import_module("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_dataset_may_be_a_local_folder(folder: Any, library: Any, suffix: str) -> None:
    rows = [{"q": "Sew.", "n": 1, "c": ["a"]}, {"q": "Knit.", "n": 2, "c": ["b"]}]
    (folder.path / "set").mkdir()
    file = folder.path / "set" / f"train.{suffix}"
    if suffix == "jsonl":
        folder.write("set/train.jsonl", rows)
    else:
        library.Dataset.from_list(rows).to_parquet(file)
    source = f"dataset: {folder.path / 'set'}, split: train"
    text = f'sources: [{{{source}, where: {{n: 2}}}}]\nprompt: "{{q}} {{c.0}}"\nbetter: lower\n'
    assert prompts(folder.load(text)) == ["Knit. b"]
    with pytest.raises(DataError, match=r"set/train, row 1: .*`absent`") as error:
        folder.load(f'sources: [{{{source}}}]\nprompt: "{{absent}}"\nbetter: lower\n')
    assert error.value.code == "column-missing"
    with pytest.raises(DataError, match="`n` 3") as error:
        folder.load(f"sources: [{{{source}, where: {{n: 3}}}}]\n{ASK}")
    assert error.value.code == "suite-empty"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace `datasets`: `rows` are returned, or raised; `calls` has the arguments."""
    found = SimpleNamespace(rows=[], calls=[])

    def load_dataset(*arguments: Any, **options: Any) -> Iterable[dict[str, Any]]:
        found.calls.append((arguments, options))
        if isinstance(found.rows, Exception):
            raise found.rows
        return iter(found.rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return found


def test_a_dataset_is_loaded_where_no_file_is_at_hand(folder: Any, hub: SimpleNamespace) -> None:
    hub.rows = [{"q": "Sew."}]
    source = "{dataset: some/set, config: small, split: train, revision: v1}"
    suite = f"sources: [{source}, {{file: data.csv}}]\n{ASK}"
    assert prompts(folder.load(suite)) == ["Sew."]
    assert hub.calls == [(("some/set", "small"), {"split": "train", "revision": "v1"})]
    folder.write("data.csv", [{"q": "Knit."}])
    assert prompts(folder.load(suite)) == ["Knit."]
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ConnectionError("Couldn't reach the hub.\nTraceback"), "Couldn't reach the hub."),
        (FileNotFoundError(), "FileNotFoundError"),
        (ValueError("Unknown split"), "Unknown split"),
    ],
)
def test_a_dataset_that_cannot_be_loaded_is_an_error(
    folder: Any, hub: SimpleNamespace, raised: Exception, reason: str
) -> None:
    hub.rows = raised
    suite = f"sources: [{{file: data.csv}}, {{dataset: some/set, split: train}}]\n{ASK}"
    with pytest.raises(DataError, match=f"mine.*some/set/train.*{reason}") as error:
        folder.load(suite)
    assert error.value.code == "suite-data-missing"
    assert "Traceback" not in error.value.message
    assert "data.csv" in error.value.hint


def test_a_dataset_without_rows_is_an_error(folder: Any, hub: SimpleNamespace) -> None:
    with pytest.raises(DataError, match="some/set") as error:
        folder.load(f"sources: [{{dataset: some/set}}]\n{ASK}")
    assert error.value.code == "suite-empty"


def test_the_library_of_datasets_may_be_missing(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    suite = f"sources: [{{file: data.csv}}, {{dataset: some/set}}]\n{ASK}"
    with pytest.raises(ConfigError, match="datasets") as error:
        folder.load(suite)
    assert error.value.code == "library-missing"
    assert "retouch[datasets]" in error.value.hint
    folder.write("data.csv", [{"q": "Sew."}])
    assert prompts(folder.load(suite)) == ["Sew."]
