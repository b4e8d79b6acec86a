from __future__ import annotations

import sys

import pytest

from retouch.core.errors import ConfigError
from retouch.evaluation.text_quality import (
    repeated_ngrams,
    repeated_sentences,
    self_bleu,
    text_quality,
)


def test_similar_responses_have_a_high_self_bleu() -> None:
    text = "To boil an egg, take a pan of water and wait."
    assert self_bleu([text, text, text]) == pytest.approx([100.0] * 3)
    different = self_bleu(["one two three four five", "red green blue black white"])
    assert max(different) < 10
    mixed = self_bleu([text, text, "Nothing of that is here at all, friend."])
    assert mixed[0] > 99 > 50 > mixed[2]
    assert self_bleu(["Paris.", "Paris."]) == pytest.approx([100.0, 100.0])


def test_repetition_is_counted_within_a_response() -> None:
    assert repeated_ngrams("a b c d") == (0, 1)
    assert repeated_ngrams("go go go go go go") == (2, 3)
    assert repeated_ngrams("too short") == (0, 0)
    assert repeated_sentences("Do it. do it. Stop! Why?") == (1, 4)
    assert repeated_sentences("") == (0, 0)


def test_base_and_edited_responses_are_compared() -> None:
    base = ["Take a cup of tea.", "A red fox ran by the old mill.", "Count to ten, then rest."]
    looped = ["And so on and so on. And so on and so on."] * 3
    records = text_quality(base, looped)
    bleu, ngrams, sentences = records
    assert [record.metric for record in records] == [
        "self_bleu",
        "repetition_4gram",
        "repetition_sentence",
    ]
    assert {record.suite for record in records} == {"text-quality"}
    assert bleu.after is not None
    assert bleu.after.value == pytest.approx(100.0)
    assert bleu.before.value < 30
    assert ngrams.before.value == sentences.before.value == 0.0
    assert sentences.after is not None
    assert sentences.after.value == 0.5
    assert text_quality(base)[0].after is None
    assert text_quality(["a", "b"])[1].before.value == 0.0  # no response has a 4-gram


def test_without_sacrebleu_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"retouch\[compare\]") as error:
        self_bleu(["a", "b"])
    assert error.value.code == "library-missing"
