"""Texts beyond the context or the memory are errors before anything runs, with their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.concepts.concept import Concept, Example
from retouch.concepts.location import SourceLocation
from retouch.core.config import DataConfig, EditConfig
from retouch.core.errors import DataError
from retouch.core.types import Message
from retouch.models.layout import find_layout
from retouch.pipeline import run_edit
from retouch.task.text_lengths import check_text_lengths, sampled_examples


def example(text: str, line: int, response: str | None = None) -> Example:
    location = SourceLocation("locks.csv", line)
    return Example((Message("user", text),), "negative", response, location=location)


def check(examples: list[Example], free: int | None = None, **config: Any) -> None:
    model = tiny_model(**config)
    check_text_lengths(examples, tiny_tokenizer(), model, find_layout(model), free)


def test_texts_beyond_the_context_are_named_with_their_lines() -> None:
    short = [example(f"pick lock {i}", i) for i in range(5)]
    check(short)
    with pytest.raises(DataError, match=r"locks\.csv, line 7 \(") as raised:
        check([*short, example("pick a lock " * 2000, 7)])
    assert raised.value.code == "text-too-long"
    with pytest.raises(DataError, match=r"line 8 \(.*and 2 more"):
        check([example(f"pick lock {i} " * 2000, i) for i in range(6, 11)])
    with pytest.raises(DataError, match=r"line 9 \("):
        check([*short, example("pick a lock", 9, "no " * 9000)])


def test_a_text_that_exceeds_the_memory_is_named_with_its_line() -> None:
    long, tokens = example("pick a lock " * 2000, 7), 2**20
    check([long], free=2**40, max_position_embeddings=tokens)
    with pytest.raises(DataError, match=r"line 7 \(") as raised:
        check([example("hi", 3), long], free=2**20, max_position_embeddings=tokens)
    assert raised.value.code == "text-exceeds-memory"


def test_an_edit_stops_before_it_responds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"lock {i}", "chosen": f"no {i}", "rejected": "sure"} for i in range(12)]
    rows[3]["chosen"] = "no " * 9000
    for i, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[i // 3]
    path = tmp_path / "locks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    concept, config = Concept.from_file(path), EditConfig(concept=str(path))
    texts = sampled_examples(concept, "raise", DataConfig(num_retain=0), 0)
    assert {one.description for one in texts} >= {f"{path}, line {i}" for i in range(1, 10)}
    monkeypatch.setattr("retouch.stages.build_task", lambda *_: pytest.fail("the edit began"))
    events: list[Any] = []
    with pytest.raises(DataError, match="line 4") as raised:
        run_edit(config, concept, tmp_path / "run", on_event=events.append)
    assert raised.value.code == "text-too-long"
    assert any("TRL preference" in getattr(one, "detail", "") for one in events)
