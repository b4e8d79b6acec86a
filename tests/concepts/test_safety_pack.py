"""The pack `safety`: numbers, disjoint splits and attack families, refusals that refuse."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from helpers.pack_texts import select, similarities, words
from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.concepts.validate import validate
from retouch.core.types import SPLITS, Split
from retouch.evaluation.response_classifier import classify, is_clean
from retouch.evaluation.scorers import check_metrics

NUM_CATEGORIES = 12
PER_CATEGORY: dict[Split, int] = {"train": 32, "validation": 11, "test": 8}
NUM_FAMILIES: dict[Split, int] = {"train": 10, "validation": 4, "test": 4}
MIN_EXAMPLES: dict[str, dict[Split, int]] = {
    "wrapped": {"train": 240, "validation": 100, "test": 100},
    "prefilled-harmless": {"train": 66, "validation": 60, "test": 60},
    "prefilled": {"train": 0, "validation": 60, "test": 100},
    "borderline": {"train": 300, "validation": 100, "test": 100},
    "ordinary": {"train": 500, "validation": 250, "test": 150},
}
MAX_REFUSAL_WORDS = 45
MIN_OPENINGS = 40  # different first three words of refusals
MIN_PREFILLS = 25
MAX_JACCARD = 0.6  # of the words of two harmful requests of different splits


@pytest.fixture(scope="module")
def safety() -> Concept:
    return load_concept("safety")


@pytest.mark.parametrize("split", SPLITS)
def test_every_category_has_the_same_number_of_requests(safety: Concept, split: Split) -> None:
    categories = Counter(example.group for example in safety.select(split, ["harmful"]))
    assert len(categories) == NUM_CATEGORIES
    assert set(categories.values()) == {PER_CATEGORY[split]}


@pytest.mark.parametrize("split", SPLITS)
def test_every_request_has_a_refusal_and_an_attack(safety: Concept, split: Split) -> None:
    requests = {example.pair: example for example in safety.select(split, ["harmful"])}
    refusals = {example.pair: example for example in safety.select(split, ["refused"])}
    attacks = {example.pair: example for example in safety.select(split, ["attack"])}
    assert None not in requests
    assert requests.keys() == refusals.keys() == attacks.keys()
    for pair, request in requests.items():
        assert refusals[pair].prompt == request.prompt
        assert attacks[pair].entity == refusals[pair].entity == request.entity != ""
        # A template may begin a sentence before the request, which is then in lower case.
        assert request.last_turn.lower() in attacks[pair].last_turn.lower()
        assert attacks[pair].prompt != request.prompt


@pytest.mark.parametrize("split", SPLITS)
def test_harmless_requests_are_in_the_same_attacks(safety: Concept, split: Split) -> None:
    attacks = Counter(example.group for example in safety.select(split, ["attack"]))
    wrapped = Counter(example.group for example in safety.select(split, ["wrapped"]))
    assert len(attacks) == NUM_FAMILIES[split]
    assert attacks.keys() == wrapped.keys()
    assert max(attacks.values()) - min(attacks.values()) <= 2
    assert max(wrapped.values()) - min(wrapped.values()) <= 2


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("label", MIN_EXAMPLES)
def test_every_label_has_enough_examples(safety: Concept, label: str, split: Split) -> None:
    found = len(safety.select(split, [label]))
    expected = MIN_EXAMPLES[label][split]
    assert found >= expected if expected else found == 0


def test_splits_share_no_request_no_subject_and_no_attack_family(safety: Concept) -> None:
    for first, second in combinations(SPLITS, 2):
        for label in ("harmful", "attack", "wrapped", "prefilled", "prefilled-harmless"):
            one, other = (safety.select(split, [label]) for split in (first, second))
            assert not {example.prompt for example in one} & {example.prompt for example in other}
        one, other = (safety.select(split, ["harmful"]) for split in (first, second))
        assert not {example.entity for example in one} & {example.entity for example in other}
        one, other = (safety.select(split, ["attack", "wrapped"]) for split in (first, second))
        assert not {example.group for example in one} & {example.group for example in other}


def test_splits_share_no_close_paraphrase_of_a_request(safety: Concept) -> None:
    alike = [
        pair
        for similarity, *pair in similarities(lambda split: safety.select(split, ["harmful"]))
        if similarity > MAX_JACCARD
    ]
    assert alike == []


def test_no_request_is_repeated(safety: Concept) -> None:
    for label in ("harmful", "wrapped", "attack", "prefilled-harmless"):
        texts = Counter(" ".join(words(one.last_turn)) for one in select(safety, label))
        assert [text for text, count in texts.items() if count > 1] == []
    entities = Counter(example.entity for example in select(safety, "harmful"))
    assert max(entities.values()) == 1


def test_refusals_refuse_in_whole_sentences(safety: Concept) -> None:
    for example in select(safety, "refused"):
        response = example.response or ""
        assert classify(response, example.last_turn) == "refusal", response
        assert is_clean(response), response
        assert response.endswith("."), response
        assert 15 <= len(response.split()) <= MAX_REFUSAL_WORDS, response


def test_refusals_are_worded_in_many_ways(safety: Concept) -> None:
    responses = [example.response or "" for example in select(safety, "refused")]
    assert len(set(responses)) == len(responses)
    openings = Counter(" ".join(words(response)[:3]) for response in responses)
    assert len(openings) >= MIN_OPENINGS
    usual = sum(one.startswith(("I'm sorry, but I can't", "I can't")) for one in responses)
    assert 0.5 <= usual / len(responses) <= 0.7


def test_attacks_are_short_and_long_and_some_have_several_turns(safety: Concept) -> None:
    attacks = select(safety, "attack")
    lengths = sorted(sum(len(turn.content.split()) for turn in one.prompt) for one in attacks)
    assert lengths[len(lengths) // 10] <= 25
    assert lengths[-len(lengths) // 10] >= 100
    assert any(len(one.prompt) > 1 for one in attacks)
    assert all(one.prompt[0].role == "user" for one in attacks)


def test_prefills_have_many_wordings_that_both_kinds_of_requests_share(safety: Concept) -> None:
    harmless = {example.prefill for example in select(safety, "prefilled-harmless")}
    harmful = {example.prefill for example in select(safety, "prefilled")}
    assert len(harmless) >= MIN_PREFILLS
    assert "" not in harmless | harmful
    # Otherwise the prefill would tell which of the two it is.
    assert harmful <= harmless


def test_prefilled_requests_are_the_harmful_ones_of_the_split(safety: Concept) -> None:
    for split in SPLITS:
        requests = {example.prompt for example in safety.select(split, ["harmful"])}
        assert {example.prompt for example in safety.select(split, ["prefilled"])} <= requests


def test_the_context_is_of_other_subjects_and_refuses(safety: Concept) -> None:
    context = safety.directions["raise"].context
    assert context is not None
    assert context.system
    assert len(context.demonstrations) == 3
    prompts = {example.last_turn for example in select(safety, "harmful", "attack")}
    for one in context.demonstrations:
        assert classify(one.response, one.prompt) == "refusal"
        assert one.prompt not in prompts


def test_the_pack_is_valid_and_its_metrics_too(safety: Concept) -> None:
    assert safety.weakens == "lower"
    assert not safety.settings
    check_metrics(safety)
    assert [finding for finding in validate(safety) if finding.level != "ok"] == []
