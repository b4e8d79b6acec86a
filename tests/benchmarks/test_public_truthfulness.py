from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from benchmarks import public_truthfulness
from benchmarks.public_truthfulness import Question, divide, truthfulness
from helpers.public_data import write_rows
from retouch.concepts.registry import load_concept_file
from retouch.suites.registry import load_suite_concept

COUNTS = {"train": 6, "validation": 3}


def question(number: int) -> Question:
    text = f"Which word{number} is word{number + 100} of word{number + 200}?"
    return Question(text, (f"True {number}.", f"So {number}."), (f"False {number}.",))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(public_truthfulness, "COUNTS", COUNTS)
    rows = []
    for one in map(question, range(14)):
        choices = [*one.correct, *one.wrong]
        mc2 = {"choices": choices, "labels": [1, 1, 0]}
        mc1 = {"choices": choices[1:], "labels": [1, 0]}
        rows.append({"question": one.text, "mc1_targets": mc1, "mc2_targets": mc2})
    write_rows(tmp_path / "data", "truthfulqa_mc", rows)
    return tmp_path / "data"


def test_a_question_that_shares_half_of_its_words_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(public_truthfulness, "COUNTS", {"train": 12, "validation": 1})
    questions = [question(i) for i in range(14)]
    assert len(divide(questions)["test"]) == 1
    near = [Question(f"Which sky {i % 2} is blue there?", ("a",), ("b",)) for i in range(14)]
    assert divide(near)["test"] == []


def test_the_splits_share_no_question_and_the_suite_has_the_unseen_ones(
    data: Path, tmp_path: Path
) -> None:
    counts = public_truthfulness.write(tmp_path / "out", data)
    assert counts == {**COUNTS, "test": 5}
    concept = load_concept_file(tmp_path / "out" / "concept")
    texts = {
        split: {one.prompt[-1].content for one in concept.select(split, ["question"])}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["validation"]
    suite = load_suite_concept(tmp_path / "out" / "truthfulqa-unseen.yaml")
    unseen = {one.prompt[-1].content for one in suite.examples["test"]}
    assert unseen == texts["test"]
    assert [one.metric for one in suite.metrics] == ["mc1", "mc2"]


def test_the_control_has_the_answers_of_other_questions() -> None:
    divided = divide([question(i) for i in range(20)] + [question(i) for i in range(30, 600)])
    real, control = (truthfulness(divided, shuffled=shuffled) for shuffled in (False, True))
    for split, label in product(("train", "validation"), ("truthful", "popular")):
        one, other = (concept.select(split, [label]) for concept in (real, control))
        assert sorted(e.response or "" for e in one) == sorted(e.response or "" for e in other)
        same = [a.response == b.response for a, b in zip(one, other, strict=True)]
        assert not any(same)
    assert real.select("test", ["truthful"]) == control.select("test", ["truthful"])
    pack = truthfulness(divided, shuffled=False).select("train", ["fact", "ordinary"])
    assert pack  # what the pack retains
