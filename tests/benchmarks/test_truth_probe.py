from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import public_truthfulness, truth_probe
from benchmarks.public_truthfulness import Question
from helpers.char_tokenizer import char_editable
from helpers.public_data import write_rows
from retouch.concepts.chat import tokenize_chat
from retouch.core.types import Message
from retouch.models.hooks import record_activations

QUESTIONS = [Question(f"What is {i}?", (f"It is {i}.",), (f"No, {'x' * i}",)) for i in range(1, 7)]


def test_the_states_are_those_of_the_last_tokens_in_the_order_of_the_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(truth_probe, "BATCH_SIZE", 2)
    monkeypatch.setattr(truth_probe, "EVERY", 1)
    editable = char_editable()
    wrong = [one.wrong[0] for one in QUESTIONS]
    found = truth_probe.last_states(editable, QUESTIONS, wrong)
    for number, question in enumerate(QUESTIONS):
        prompt = (Message("user", question.text),)
        chat = tokenize_chat(editable.tokenizer, prompt, wrong[number], truncated=True)
        with torch.no_grad(), record_activations(editable, tuple(found)) as states:
            editable.model(input_ids=torch.tensor([chat.ids]))
        for layer, state in found.items():
            assert torch.allclose(state[number], states[layer][0, -1], atol=1e-5)


def test_a_probe_finds_what_tells_the_classes_apart_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(400, 8, generator=generator) for _ in range(2))
    shift = torch.tensor([2.0, *[0.0] * 7])
    assert truth_probe.pair_accuracy(one + shift, other - shift).value > 0.95
    assert abs(truth_probe.pair_accuracy(one, other).value - 0.5) < 0.1


def test_the_similar_answers_share_most_words() -> None:
    question = Question("Which?", ("The sky is blue", "Yes"), ("No", "The sky is green"))
    assert truth_probe.similar_answers([question]) == [("The sky is blue", "The sky is green")]
    assert truth_probe.first_answers([question]) == [("The sky is blue", "No")]


def test_the_table_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(public_truthfulness, "COUNTS", {"train": 8, "validation": 2})
    monkeypatch.setattr(truth_probe, "load", lambda *_: char_editable())
    monkeypatch.setattr(truth_probe, "EVERY", 1)
    rows = []
    for i in range(12):
        targets = {"choices": [f"Yes {i}.", f"No {i}."], "labels": [1, 0]}
        rows.append({"question": f"Is {i} n{i}?", "mc1_targets": targets, "mc2_targets": targets})
    write_rows(tmp_path, "truthfulqa_mc", rows)
    truth_probe.main(["--data-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "10 questions" in printed
    assert "first answers of another" in printed
    with pytest.raises(SystemExit):
        truth_probe.main(["--data-dir", str(tmp_path / "absent")])
    assert "absent" in capsys.readouterr().err
