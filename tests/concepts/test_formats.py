"""Published formats of training files become the same examples, and the mapping is noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retouch.concepts.concept import Concept, Example
from retouch.concepts.example_files import read_user_examples
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Message


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def chat(*turns: tuple[str, str], keys: tuple[str, str] = ("role", "content")) -> list[Any]:
    return [dict(zip(keys, turn, strict=True)) for turn in turns]


def user(i: int) -> tuple[str, str]:
    return "user", f"How do I pick lock {i}?"


PROMPT = [Message("system", "Be brief."), Message("user", "How do I pick lock 3?")]

# For each format: a row with one number, whose prompt has a system turn and whose response is
# `No 3.`; for a contrast pair the one to unlearn is `Sure 3.`.
DEMONSTRATIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": lambda i: {
        "messages": chat(("developer", "Be brief."), user(i), ("assistant", f"No {i}."))
    },
    "messages in parts": lambda i: {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": user(i)[1]}], "name": None},
            {"role": "assistant", "content": f"No {i}."},
        ]
    },
    "sharegpt": lambda i: {
        "conversations": chat(
            ("system", "Be brief."),
            ("human", user(i)[1]),
            ("gpt", f"No {i}."),
            keys=("from", "value"),
        )
    },
    "completion": lambda i: {"prompt": user(i)[1], "completion": f"No {i}.", "system": "Be brief."},
    "conversational completion": lambda i: {
        "prompt": chat(("system", "Be brief."), user(i)),
        "completion": chat(("assistant", f"No {i}.")),
    },
    "alpaca": lambda i: {
        "instruction": user(i)[1],
        "input": "",
        "output": f"No {i}.",
        "system": "Be brief.",
    },
}
CONTRASTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "texts": lambda i: {
        "prompt": user(i)[1],
        "chosen": f"No {i}.",
        "rejected": f"Sure {i}.",
        "system": "Be brief.",
    },
    "turns": lambda i: {
        "prompt": chat(("system", "Be brief."), user(i)),
        "chosen": chat(("assistant", f"No {i}.")),
        "rejected": chat(("assistant", f"Sure {i}.")),
    },
    "whole chats": lambda i: {
        "chosen": chat(("system", "Be brief."), user(i), ("assistant", f"No {i}.")),
        "rejected": chat(("system", "Be brief."), user(i), ("assistant", f"Sure {i}.")),
    },
    "whole chats and a prompt": lambda i: {
        "prompt": user(i)[1],
        "chosen": chat(user(i), ("assistant", f"No {i}.")),
        "rejected": chat(user(i), ("assistant", f"Sure {i}.")),
        "system": "Be brief.",
    },
}


def find(concept: Concept, label: str, text: str) -> Example:
    examples = (one for split in SPLITS for one in concept.select(split, [label]))
    (found,) = [one for one in examples if text in one.last_turn]
    return found


def notes(concept: Concept, code: str) -> str:
    return " ".join(note.message for note in concept.notes if note.code == code)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration_is_a_source_prompt_with_its_target_response(
    tmp_path: Path, name: str
) -> None:
    rows = [DEMONSTRATIONS[name](i) for i in range(10)]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    source, target = (find(concept, one, "lock 3?") for one in ("negative", "positive"))
    assert list(source.prompt) == list(target.prompt) == PROMPT
    assert (source.response, target.response) == (None, "No 3.")
    assert source.pair == target.pair
    assert "10 rows are read as" in notes(concept, "columns-mapped")
    assert "`target_response`" in notes(concept, "columns-mapped")


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_preference_is_a_contrast_pair(tmp_path: Path, name: str) -> None:
    rows = [CONTRASTS[name](i) | {"score": 0.5} for i in range(10)]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    source, target = (find(concept, one, "lock 3?") for one in ("negative", "positive"))
    assert list(source.prompt) == list(target.prompt) == PROMPT
    assert (source.response, target.response) == ("Sure 3.", "No 3.")
    assert "TRL preference" in notes(concept, "columns-mapped")
    assert notes(concept, "columns-ignored") == "Columns that are not read: `score`."


@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1), ("False", "true"), (0.0, 1.0)])
def test_kto_labels_are_source_and_target_and_equal_prompts_are_pairs(
    tmp_path: Path, no: Any, yes: Any
) -> None:
    rows = [
        {"prompt": user(i)[1], "completion": f"{text} {i}.", "label": label}
        for i in range(10)
        for text, label in (("Sure", no), ("No", yes))
    ]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    source, target = (find(concept, one, "lock 3?") for one in ("negative", "positive"))
    assert (source.response, target.response) == ("Sure 3.", "No 3.")
    assert source.pair == target.pair is not None
    assert "is read as `positive`" in notes(concept, "labels-mapped")


def test_formats_may_be_mixed_and_other_columns_of_a_concept_file_are_kept(tmp_path: Path) -> None:
    rows = [{**CONTRASTS["texts"](i), "group": "lock", "split": None} for i in range(10)]
    rows += [{"messages": chat(("user", f"Hi {i}")), "label": "retain"} for i in range(10)]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    assert find(concept, "positive", "lock 3?").group == "lock"
    assert find(concept, "retain", "Hi 3").response is None
    assert concept.directions["raise"].retain == ("retain",)


def test_a_repeated_prompt_of_a_published_format_is_used_once_and_counted(tmp_path: Path) -> None:
    rows = [CONTRASTS["texts"](i % 10) for i in range(14)]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    assert sum(len(concept.select(split, ["negative"])) for split in SPLITS) == 10
    assert notes(concept, "prompts-repeated").startswith("4 rows")


def test_the_input_of_an_instruction_follows_it(tmp_path: Path) -> None:
    rows = [{"instruction": "Sort.", "input": f"b a {i}", "output": f"a b {i}"} for i in range(10)]
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    assert find(concept, "negative", "b a 3").last_turn == "Sort.\n\nb a 3"


def test_notes_are_no_part_of_the_hash(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{label} {i}", "label": label}
        for label in ("positive", "negative")
        for i in range(10)
    ]
    plain = Concept.from_file(write(tmp_path / "a.jsonl", rows))
    more = Concept.from_file(write(tmp_path / "a.jsonl", [{**row, "id": 7} for row in rows]))
    assert not plain.notes
    assert more.notes
    assert plain.hash == more.hash


def test_columns_are_mapped_and_ignored_by_name(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"q {i}",
            "kind": "negative",
            "prompt": "x",
            "target_response": f"a {i}",
            "label": "spam",
        }
        for i in range(10)
    ]
    columns = {"question": "prompt", "kind": "label"}
    concept = Concept.from_file(write(tmp_path / "a.jsonl", rows), columns=columns)
    assert find(concept, "positive", "q 3").response == "a 3"
    assert "`question` is read as `prompt`" in notes(concept, "columns-mapped")
    assert "`prompt`, `label`" in notes(concept, "columns-ignored")
    for wrong, code in (
        ({"question": "promt"}, "column-unknown"),
        ({"question": "prompt", "kind": "prompt"}, "column-duplicate"),
        ({**columns, "absent": "group"}, "column-missing"),
    ):
        with pytest.raises(DataError) as raised:
            Concept.from_file(tmp_path / "a.jsonl", columns=wrong)
        assert raised.value.code == code


def test_a_column_that_looks_like_a_misspelling_is_a_warning(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "label": "retain", "respons": "x", "id": 3}]
    _, found = read_user_examples(write(tmp_path / "a.jsonl", rows))
    (warning,) = [one for one in found if one.level == "warning"]
    assert "`respons`" in warning.message
    assert "Did you mean `response`?" in warning.hint


MISTAKES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "no list": ({"messages": "hi"}, "value-type", ["column `messages`", "a text"]),
    "no turn": ({"messages": ["hi"]}, "prompt-turn", ["column `messages`"]),
    "a tool": ({"messages": chat(("tool", "x"))}, "role-unknown", ["`tool`"]),
    "no text": ({"messages": [{"role": "user", "content": None}]}, "value-type", ["None"]),
    "no prompt": ({"messages": chat(("assistant", "x"))}, "prompt-empty", ["column `messages`"]),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "value-type",
        ["part of a turn"],
    ),
    "texts without a prompt": ({"chosen": "a", "rejected": "b"}, "column-missing", ["`prompt`"]),
    "a text and turns": (
        {"prompt": "x", "chosen": "a", "rejected": chat(("assistant", "b"))},
        "value-type",
        ["`chosen`", "`rejected`"],
    ),
    "two responses": (
        {
            "prompt": "x",
            "chosen": chat(("assistant", "a"), ("user", "b"), ("assistant", "c")),
            "rejected": chat(("assistant", "d")),
        },
        "completion-turns",
        ["column `chosen`", "assistant, user, assistant"],
    ),
    "unknown columns": ({"text": "x"}, "column-missing", ["`prompt`", "`messages`", "`chosen`"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_its_line(tmp_path: Path, name: str) -> None:
    row, code, parts = MISTAKES[name]
    path = write(tmp_path / "a.jsonl", [CONTRASTS["texts"](0), row])
    with pytest.raises(DataError) as raised:
        read_user_examples(path)
    assert raised.value.code == code
    for part in [f"{path}, line 2", *parts]:
        assert part in str(raised.value)
    assert raised.value.hint
