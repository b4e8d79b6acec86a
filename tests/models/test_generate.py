"""A generated response does not depend on the batch."""

from __future__ import annotations

import pytest

from retouch.concepts.chat import tokenize_chat
from retouch.core.types import Message
from retouch.models import generate as generating
from retouch.models.generate import generate
from retouch.models.load import load

QUESTIONS = [
    "What is 3 + 4?",
    "Hi!",
    "Sort these numbers: 7, 2, 9.",
    "What is the capital of Peru?",
]


def test_responses_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    editable = load("pocket")
    prompts = [
        tokenize_chat(editable.tokenizer, [Message("user", text)], "").ids[:-1]
        for text in QUESTIONS
    ]
    together = generate(editable, prompts)
    assert together == [generate(editable, [prompt])[0] for prompt in prompts]
    assert together == generate(editable, prompts, batch_size=2)
    calls: list[tuple[int, int]] = []
    generate(editable, prompts, batch_size=3, progress=lambda _, *done: calls.append(done))
    assert calls == [(3, 4), (4, 4)]

    run = generating._generate_batch

    def fail_above_two(model: object, rows: list[list[int]], limit: int) -> list[str]:
        if len(rows) > 2:
            raise MemoryError
        return run(editable, rows, limit)

    monkeypatch.setattr(generating, "_generate_batch", fail_above_two)
    assert generate(editable, prompts) == together
