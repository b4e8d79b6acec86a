"""The pack `ordinary`: numbers, variety, disjoint splits, and the metrics that it declares."""

from __future__ import annotations

from collections import Counter

import pytest

from helpers.pack_texts import similarities, words
from retouch.concepts.concept import Concept, Example
from retouch.concepts.registry import load_concept
from retouch.concepts.validate import validate
from retouch.core.types import SPLITS, Split
from retouch.evaluation.scorers import check_metrics

MIN_EXAMPLES: dict[Split, int] = {"train": 500, "validation": 250, "test": 150}
MIN_KINDS = 16
MIN_KIND = 5  # examples of a kind in a split
MAX_JACCARD = 0.6  # of the words of two prompts; function words alone reach .5 in short questions


@pytest.fixture(scope="module")
def ordinary() -> Concept:
    return load_concept("ordinary")


def number_of_words(example: Example) -> int:
    return sum(len(turn.content.split()) for turn in example.prompt)


def everything(concept: Concept) -> list[Example]:
    return [example for split in SPLITS for example in concept.examples[split]]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_enough_examples_of_every_kind(ordinary: Concept, split: Split) -> None:
    examples = ordinary.examples[split]
    kinds = Counter(example.group for example in examples)
    assert len(examples) >= MIN_EXAMPLES[split]
    assert {example.label for example in examples} == {"ordinary"}
    assert set(kinds) == {example.group for example in everything(ordinary)}
    assert len(kinds) >= MIN_KINDS
    assert min(kinds.values()) >= MIN_KIND
    # No kind dominates.
    assert max(kinds.values()) <= 2 * len(examples) / len(kinds)


def test_no_two_prompts_are_alike(ordinary: Concept) -> None:
    normalised = Counter(" ".join(words(example.last_turn)) for example in everything(ordinary))
    assert [text for text, count in normalised.items() if count > 1] == []


def test_splits_share_no_close_paraphrase(ordinary: Concept) -> None:
    alike = [
        pair
        for similarity, *pair in similarities(lambda split: ordinary.examples[split])
        if similarity > MAX_JACCARD
    ]
    assert alike == []


@pytest.mark.parametrize("split", SPLITS)
def test_some_prompts_have_a_system_turn_and_some_have_several_turns(
    ordinary: Concept, split: Split
) -> None:
    prompts = [example.prompt for example in ordinary.examples[split]]
    system = sum(prompt[0].role == "system" for prompt in prompts)
    several = sum(any(turn.role == "assistant" for turn in prompt) for prompt in prompts)
    assert 0.06 <= system / len(prompts) <= 0.12
    assert 0.04 <= several / len(prompts) <= 0.1


def test_prompts_are_short_and_long_and_begin_in_many_ways(ordinary: Concept) -> None:
    examples = everything(ordinary)
    lengths = sorted(map(number_of_words, examples))
    assert lengths[0] >= 2
    assert lengths[len(lengths) // 20] <= 4
    assert lengths[-len(lengths) // 20] >= 30
    assert lengths[-1] <= 80
    # No beginning of three words is a template; "How do I" is the commonest, as in real use.
    beginnings = Counter(" ".join(words(example.last_turn)[:3]) for example in examples)
    assert max(beginnings.values()) <= 0.04 * len(examples)
    questions = sum("?" in example.prompt[-1].content for example in examples)
    assert 0.3 <= questions / len(examples) <= 0.7


def test_the_pack_only_measures_side_effects(ordinary: Concept) -> None:
    assert not ordinary.directions
    assert {metric.metric for metric in ordinary.metrics} >= {
        "ordinary_refusal",
        "ordinary_degenerate",
    }
    assert {metric.better for metric in ordinary.metrics} == {"lower"}
    check_metrics(ordinary)
    assert [finding for finding in validate(ordinary) if finding.level != "ok"] == []
