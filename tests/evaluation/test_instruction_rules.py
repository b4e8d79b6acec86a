"""Rules are read from an instruction and decide whether a response follows it."""

from __future__ import annotations

import pytest

from retouch.core.errors import ConfigError
from retouch.evaluation.instruction_rules import (
    count_sentences,
    count_words,
    describe_rule,
    find_language,
    find_rule,
    follows,
)


@pytest.mark.parametrize(
    ("instruction", "rule"),
    [
        ("Answer in one short sentence.", "max_sentences:1,max_words:30"),
        ("Answer in a single sentence", "max_sentences:1"),
        ("Use at most three clear, simple sentences.", "max_sentences:3"),
        ("Reply in no more than 20 words.", "max_words:20"),
        ("Give a one-word answer.", "max_words:1"),
        ("Answer in French.", "language:fr"),
        ("Always reply in formal German, in two sentences.", "max_sentences:2,language:de"),
        ("Speak Spanish.", "language:es"),
        ("WRITE IN CAPITAL LETTERS", "uppercase"),
        ("Write everything in lower case.", "lowercase"),
        ("Use bullet points.", "list"),
        ("Respond with a JSON object.", "json"),
        ("Always end your answer with a question.", "ends_with:?"),
        ("Do not use bullet points.", ""),
        ("Never answer in French.", ""),
        ("Be friendly and mention the weather.", ""),
        ("Explain French history.", ""),
    ],
)
def test_the_rule_of_an_instruction(instruction: str, rule: str) -> None:
    assert find_rule(instruction) == rule


@pytest.mark.parametrize(
    ("rule", "response", "expected"),
    [
        ("max_sentences:1", "Rain is water that falls from clouds.", True),
        ("max_sentences:1", "It is 3.5 km away, e.g. by bus, says Dr. Smith.", True),
        ("max_sentences:1", "Rain is water. It falls.", False),
        ("max_sentences:1", "Rain is water\n\nIt falls", False),
        ("max_sentences:1", "Paris", True),
        ("max_sentences:1", "word " * 50, False),
        ("max_sentences:2", 'He said "yes." Then he left.', True),
        ("max_words:3", "Three short words.", True),
        ("max_words:3", "Now there are four.", False),
        ("language:fr", "La capitale de la France est Paris, et c'est une belle ville.", True),
        ("language:fr", "The capital of France is Paris, and it is beautiful.", False),
        ("language:fr", "La capital de España es Madrid y está en el centro.", False),
        ("language:es", "La capital de España es Madrid y está en el centro.", True),
        ("language:de", "Die Hauptstadt von Frankreich ist Paris und liegt an der Seine.", True),
        ("uppercase", "PARIS IS IN FRANCE, 3 HOURS AWAY.", True),
        ("uppercase", "PARIS is IN FRANCE.", False),
        ("uppercase", "42.", False),
        ("lowercase", "paris is in france.", True),
        ("list", "Here they are:\n- one\n- two\n* three", True),
        ("list", "1. one\n2. two", True),
        ("list", "One, two and three.", False),
        ("list", "- one", False),
        ("json", '{"answer": "Paris"}', True),
        ("json", '```json\n["Paris"]\n```', True),
        ("json", "{Paris}", False),
        ("json", "42", False),
        ("ends_with:?", "It is Paris. Have you been there?", True),
        ("ends_with:?", "Who knows? It is Paris.", False),
        ("max_sentences:1,max_words:3", "Rain is falling water.", False),
        ("uppercase", "  ", False),
    ],
)
def test_whether_a_response_follows_a_rule(rule: str, response: str, expected: bool) -> None:
    assert follows(rule, response) is expected


def test_counts() -> None:
    assert count_sentences("One. Two! Three? ... and four") == 4
    assert count_words("It's a well-known 3.5 km.") == 5
    assert find_language("") == find_language("42 km, OK?") == ""


def test_rules_are_described_and_unknown_ones_are_errors() -> None:
    text = describe_rule("max_words:30,language:fr")
    assert text == "words: at most 30, in French"
    for rule in ("max_word:3", "max_words:x", "language:xx", ""):
        with pytest.raises(ConfigError) as raised:
            follows(rule, "text")
        assert raised.value.code == "rule-unknown"
