"""Responses of the base model are generated once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from helpers.tiny_models import tiny_editable
from retouch.core.checkpoints import Checkpoints, Identity
from retouch.core.config import LoraConfig
from retouch.core.errors import RunError
from retouch.models import base_responses, generate
from retouch.models.adapters import attach, parameters
from retouch.models.base_responses import cached_base_responses
from retouch.models.editable_model import EditableModel
from retouch.models.generate import generate_responses

PROMPTS = [[7, 8, 9], [10, 11], [7, 8, 9]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))
    monkeypatch.setattr(base_responses, "MIN_PARAMETERS", 0)
    return tmp_path / "responses"


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every generation fail."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(base_responses, "generate_responses", fail)


def test_stored_responses_are_not_generated_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny_editable()
    first = cached_base_responses(editable, PROMPTS, max_new_tokens=4)
    assert first == generate_responses(editable, PROMPTS, max_new_tokens=4)
    assert first[0] == first[2]
    refuse(monkeypatch)
    assert cached_base_responses(tiny_editable(), PROMPTS, max_new_tokens=4) == first
    with pytest.raises(AssertionError, match="generated again"):
        cached_base_responses(editable, PROMPTS, max_new_tokens=5)
    with pytest.raises(AssertionError, match="generated again"):
        cached_base_responses(editable, [[12]], max_new_tokens=4)


def test_an_interruption_keeps_the_finished_batches(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCH_TOKENS", 3)  # a batch for each prompt

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_base_responses(tiny_editable(), PROMPTS, max_new_tokens=4, progress=interrupt)
    done: list[int] = []
    cached_base_responses(
        tiny_editable(), PROMPTS, max_new_tokens=4, progress=lambda _, n, total: done.append(total)
    )
    assert done == [1]  # the other prompt


def test_an_adapter_does_not_change_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editable = tiny_editable()
    first = cached_base_responses(editable, PROMPTS, max_new_tokens=4)
    attach(editable, [1], LoraConfig(), 0)
    for weight in parameters(editable).values():
        weight.data.add_(1.0)
    next(cache.glob("*.sqlite")).unlink()
    assert cached_base_responses(editable, PROMPTS, max_new_tokens=4) == first


def test_another_models_responses_are_its_own(cache: Path) -> None:
    cached_base_responses(tiny_editable(), PROMPTS, max_new_tokens=4)
    cached_base_responses(tiny_editable("gpt2"), PROMPTS, max_new_tokens=4)
    assert len(list(cache.glob("*.sqlite"))) == 2


def damage(file: Path) -> None:
    file.write_bytes(b"not a database" * 100)


def empty(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE responses")


@pytest.mark.parametrize("fault", [damage, empty])
def test_a_faulty_store_costs_time_only(cache: Path, fault: object) -> None:
    editable: EditableModel = tiny_editable()
    first = cached_base_responses(editable, PROMPTS, max_new_tokens=4)
    fault(next(cache.glob("*.sqlite")))  # type: ignore[operator]
    assert cached_base_responses(editable, PROMPTS, max_new_tokens=4) == first


def test_small_models_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))
    cached_base_responses(tiny_editable(), PROMPTS, max_new_tokens=4)
    assert not list(tmp_path.rglob("*"))


def test_a_run_keeps_them_and_continues_with_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCH_SIZE", 2)
    prompts = [[10 + i, 11, 12][: 1 + i % 3] for i in range(9)]
    batches: list[list[list[int]]] = []
    run_batch = generate._generate_batch

    def record(editable: EditableModel, chosen: list[list[int]], *more: object) -> object:
        batches.append([list(prompt) for prompt in chosen])
        return run_batch(editable, chosen, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "_generate_batch", record)
    monkeypatch.setattr(generate, "BATCH_TOKENS", 4)

    def responses(folder: Path, interrupt_after: int = 99) -> list[generate.Response]:
        editable = tiny_editable()
        editable.checkpoints = Checkpoints(folder, Identity({}, {}))
        done = 0

        def progress(*_: object) -> None:
            nonlocal done
            done += 1
            if done == interrupt_after:
                raise KeyboardInterrupt

        first = cached_base_responses(editable, prompts[:2], max_new_tokens=4)
        return first + cached_base_responses(editable, prompts, max_new_tokens=4, progress=progress)

    expected = responses(tmp_path / "whole")
    whole = batches.copy()
    assert len(whole) > 4
    batches.clear()
    with pytest.raises(KeyboardInterrupt):
        responses(tmp_path / "cut", interrupt_after=2)
    assert responses(tmp_path / "cut") == expected
    assert batches == whole
    batches.clear()
    assert responses(tmp_path / "cut") == expected
    assert not batches


def test_damaged_responses_of_a_run_are_reported(tmp_path: Path) -> None:
    editable = tiny_editable()
    editable.checkpoints = Checkpoints(tmp_path, Identity({}, {}))
    for value in ({"responses": {"a": 3}, "calls": {}}, {"responses": []}, {}):
        editable.checkpoints.write_json(base_responses.RUN_FILE, value)
        with pytest.raises(RunError) as error:
            cached_base_responses(editable, PROMPTS, max_new_tokens=4)
        assert error.value.code == "checkpoint-broken"
