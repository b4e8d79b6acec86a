"""The packs `truthfulness`, `gender-bias` and `tone`: numbers, disjoint splits, labels."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest

from helpers.pack_texts import select, similarities, words
from retouch.concepts.concept import Concept, Example
from retouch.concepts.registry import load_concept
from retouch.concepts.validate import validate
from retouch.core.types import SPLITS, Split
from retouch.evaluation.correctness import is_correct
from retouch.evaluation.response_classifier import classify, tone
from retouch.evaluation.scorers import check_metrics

NAMES = ("truthfulness", "gender-bias", "tone")
# Examples of each label in train, validation and test, at least.
MIN_EXAMPLES = {
    "truthfulness": {
        "question": (200, 60, 60),
        "truthful": (200, 60, 60),
        "popular": (200, 60, 60),
        "true-answer": (0, 60, 60),
        "keyword": (0, 20, 40),
        "true-claim": (60, 20, 20),
        "denied-claim": (0, 20, 20),
        "fact": (150, 30, 30),
    },
    "gender-bias": {
        "stereotyped": (400, 90, 120),
        "balanced": (140, 30, 40),
        "explicit": (150, 28, 40),
        "explicit-stereotyped": (0, 80, 120),
    },
    "tone": dict.fromkeys(("neutral", "cheerful", "gloomy", "matter-of-fact"), (180, 40, 50)),
}
# Examples of a label in all splits together, at least.
MIN_IN_ALL = {
    "truthfulness": {"question": 300, "fact": 200, "true-claim": 100},
    "gender-bias": {},
    "tone": dict.fromkeys(("neutral", "cheerful", "gloomy", "matter-of-fact"), 250),
}
MIN_TOPICS = 15
MIN_OCCUPATIONS = 60  # of a group, in all splits
MAX_TRUTHFUL_WORDS = 26  # some 35 tokens
MAX_SHORT_WORDS = 16
MAX_JACCARD = 0.7  # of the words of two questions of different splits
MAX_YES_OR_NO = 0.6  # share of the questions whose true answer begins with one word


@pytest.fixture(scope="module")
def packs() -> dict[str, Concept]:
    return {name: load_concept(name) for name in NAMES}


def by_pair(examples: list[Example]) -> dict[str | None, Example]:
    return {example.pair: example for example in examples}


@pytest.mark.parametrize("name", NAMES)
def test_the_packs_serve_any_model(packs: dict[str, Concept], name: str) -> None:
    concept = packs[name]
    assert concept.name == name
    # Settings are for a direction that has no pairs.
    assert set(concept.settings) <= ({"lower"} if name == "gender-bias" else set())
    assert {"raise", "lower"} == set(concept.directions)
    for spec in concept.directions.values():
        assert "ordinary" in spec.retain
        assert spec.effect in {metric.metric for metric in concept.metrics}
    assert ("drift", "kl_per_token") in {(one.suite, one.metric) for one in concept.metrics}
    check_metrics(concept)
    assert [finding for finding in validate(concept) if finding.level != "ok"] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_label_has_enough_examples(packs: dict[str, Concept], name: str) -> None:
    for label, numbers in MIN_EXAMPLES[name].items():
        for split, number in zip(SPLITS, numbers, strict=True):
            assert len(packs[name].select(split, [label])) >= number, (label, split)
    for label, number in MIN_IN_ALL[name].items():
        assert len(select(packs[name], label)) >= number, label


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_prompt_and_no_entity_of_any_label(
    packs: dict[str, Concept], name: str
) -> None:
    examples = {
        split: packs[name].select(split, MIN_EXAMPLES[name]) for split in SPLITS
    }  # without the pack `ordinary`, which has a test of its own
    for first, second in combinations(SPLITS, 2):
        prompts = [{" ".join(words(one.last_turn)) for one in examples[s]} for s in (first, second)]
        assert not prompts[0] & prompts[1]
        entities = [{one.entity for one in examples[s]} for s in (first, second)]
        assert not entities[0] & entities[1]
    assert all(one.entity for every in examples.values() for one in every)


# truthfulness


def test_questions_cover_many_topics_and_differ_between_splits(packs: dict[str, Concept]) -> None:
    concept = packs["truthfulness"]
    for split in SPLITS:
        topics = Counter(example.group for example in concept.select(split, ["question"]))
        assert len(topics) >= MIN_TOPICS
    # The factual questions are short and differ in a word, such as the country.
    compared = similarities(lambda split: concept.select(split, ["question", "true-claim"]))
    alike = [pair for similarity, *pair in compared if similarity >= MAX_JACCARD]
    assert alike == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_a_truthful_and_a_popular_answer(
    packs: dict[str, Concept], split: Split
) -> None:
    concept = packs["truthfulness"]
    questions = by_pair(concept.select(split, ["question"]))
    truthful = by_pair(concept.select(split, ["truthful"]))
    popular = by_pair(concept.select(split, ["popular"]))
    short = by_pair(concept.select(split, ["true-answer"]))
    assert questions.keys() == truthful.keys() == popular.keys()
    assert all(one.response is None for one in questions.values())
    for pair, question in questions.items():
        answer, wrong = truthful[pair].response or "", popular[pair].response or ""
        assert truthful[pair].prompt == popular[pair].prompt == question.prompt
        assert 2 <= len(re.findall(r"[.!?][\"”]?(?= |$)", answer)) <= 3, answer
        assert len(words(answer)) <= MAX_TRUTHFUL_WORDS, answer
        assert len(words(wrong)) <= MAX_SHORT_WORDS, wrong
        assert answer != wrong
        if split != "train":
            true = short[pair].response or ""
            assert answer.startswith(true)
            assert true != wrong
    assert split == "train" or short.keys() == questions.keys()


def test_the_answers_that_are_compared_have_similar_lengths(packs: dict[str, Concept]) -> None:
    concept = packs["truthfulness"]
    for first, second in (("true-answer", "popular"), ("true-claim", "denied-claim")):
        lengths = []
        others = by_pair(select(concept, second))
        for one in select(concept, first):
            if one.pair in others:
                lengths.append(len(words(one.response or "")))
                lengths.append(len(words(others[one.pair].response or "")))
        mean = [sum(side) / len(side) for side in (lengths[::2], lengths[1::2])]
        assert 0.75 <= mean[0] / mean[1] <= 1.4, (first, mean)


def test_denial_is_not_always_right(packs: dict[str, Concept]) -> None:
    concept = packs["truthfulness"]
    first = Counter(words(one.response or "")[0] for one in select(concept, "truthful"))
    assert first["no"] / len(select(concept, "truthful")) <= MAX_YES_OR_NO
    assert first["yes"] >= 5
    assert all((one.response or "").startswith("Yes") for one in select(concept, "true-claim"))
    assert all((one.response or "").startswith("No,") for one in select(concept, "denied-claim"))
    starts = Counter(words(one.last_turn)[0] for one in select(concept, "question"))
    assert starts.total() - sum(starts[w] for w in ("is", "are", "do", "does", "did", "can")) >= 180


def test_a_keyword_tells_the_true_from_the_popular_answer(packs: dict[str, Concept]) -> None:
    concept = packs["truthfulness"]
    true, popular = by_pair(select(concept, "true-answer")), by_pair(select(concept, "popular"))
    for one in select(concept, "keyword"):
        assert is_correct(true[one.pair].response or "", one.accept), one
        assert not is_correct(popular[one.pair].response or "", one.accept), one
    for one in select(concept, "fact"):
        assert is_correct(one.response or "", one.accept), one


def test_no_answer_is_a_refusal(packs: dict[str, Concept]) -> None:
    labels = ("truthful", "popular", "true-answer", "true-claim", "denied-claim", "fact")
    for one in select(packs["truthfulness"], *labels):
        assert classify(one.response or "", one.last_turn) == "answer", one


def test_the_demonstrations_of_a_context_are_in_no_split(packs: dict[str, Concept]) -> None:
    for concept in packs.values():
        prompts = {
            " ".join(words(one.last_turn)) for split in SPLITS for one in concept.examples[split]
        }
        for spec in concept.directions.values():
            for one in spec.context.demonstrations if spec.context else ():
                assert " ".join(words(one.prompt)) not in prompts


# gender-bias


def test_both_stereotypes_have_equally_many_sentences_of_many_occupations(
    packs: dict[str, Concept],
) -> None:
    concept = packs["gender-bias"]
    occupations = defaultdict(set)
    for split in SPLITS:
        examples = concept.select(split, ["stereotyped"])
        groups = Counter(example.group for example in examples)
        assert groups.keys() == {"male", "female"}
        assert max(groups.values()) <= 1.15 * min(groups.values())
        for one in examples:
            occupations[one.group].add(one.entity)
    assert min(map(len, occupations.values())) >= MIN_OCCUPATIONS
    assert not occupations["male"] & occupations["female"]


def test_the_response_repeats_a_sentence_up_to_the_pronoun(packs: dict[str, Concept]) -> None:
    concept = packs["gender-bias"]
    for one in select(concept, "stereotyped", "balanced", "explicit", "explicit-stereotyped"):
        assert one.last_turn.endswith(one.prefill)  # in running text, nothing precedes it
        assert one.entity in one.prefill
        assert one.prefill[0].isupper()
        assert not {"he", "she", "they", "his", "her", "him"} & set(words(one.last_turn))


def test_every_split_has_chats_and_running_text_and_each_case_of_the_pronoun(
    packs: dict[str, Concept],
) -> None:
    for split in SPLITS:
        examples = packs["gender-bias"].select(split, ["stereotyped"])
        assert 0.35 < sum(not one.prompt for one in examples) / len(examples) < 0.7
        cases = {one.choices for one in examples}
        assert cases == {(), ("him", "her"), ("his", "her")}


def test_the_splits_share_no_ending_of_a_sentence_and_no_wording_of_the_request(
    packs: dict[str, Concept],
) -> None:
    concept, forms = packs["gender-bias"], {}
    for split in SPLITS:
        examples = concept.select(split, ["stereotyped"])
        endings = {one.prefill.split(one.entity)[1] for one in examples}
        wordings = {one.last_turn.removesuffix(one.prefill) for one in examples if one.prompt}
        assert len(endings) >= 4
        assert len(wordings) >= 2
        forms[split] = endings | wordings
    assert not any(forms[a] & forms[b] for a, b in combinations(SPLITS, 2))


def test_explicit_sentences_determine_the_pronoun(packs: dict[str, Concept]) -> None:
    male = r"\b(father|brother|grandfather|uncle|son|nephew|mr)\b"
    female = r"\b(mother|sister|grandmother|aunt|daughter|niece|mrs)\b"
    concept = packs["gender-bias"]
    examples = select(concept, "explicit", "explicit-stereotyped")
    for one in examples:
        group = "male" if re.search(male, one.prefill.lower()) else "female"
        assert re.search(male if group == "male" else female, one.prefill.lower())
        pronouns = one.choices or ("he", "she")
        assert (one.group, one.accept) == (group, (pronouns[group == "female"],))
    # Each occupation occurs with a man and with a woman, whatever its stereotype.
    genders = defaultdict(set)
    for one in examples:
        genders[one.entity].add(one.group)
    assert all(found == {"male", "female"} for found in genders.values())
    # The base's own predictions are retained where no occupation has a stereotype.
    occupations = {one.entity for one in select(concept, "stereotyped")}
    assert not occupations & {one.entity for one in select(concept, "explicit")}
    assert {one.entity for one in select(concept, "explicit-stereotyped")} <= occupations


# tone


@pytest.mark.parametrize("split", SPLITS)
def test_every_request_is_made_plainly_and_in_three_tones(
    packs: dict[str, Concept], split: Split
) -> None:
    concept = packs["tone"]
    plain = {one.entity: one.last_turn for one in concept.select(split, ["neutral"])}
    for label in ("cheerful", "gloomy", "matter-of-fact"):
        requests = concept.select(split, [label])
        assert {one.entity for one in requests} == plain.keys()
        assert all(plain[one.entity] in one.last_turn for one in requests)
        wordings = Counter(one.last_turn.replace(plain[one.entity], "{}") for one in requests)
        assert len(wordings) >= 4
        assert max(wordings.values()) <= 0.3 * len(requests)


def test_the_splits_ask_for_a_tone_in_different_words(packs: dict[str, Concept]) -> None:
    concept = packs["tone"]
    wordings = {}
    for split in SPLITS:
        plain = {one.entity: one.last_turn for one in concept.select(split, ["neutral"])}
        requests = concept.select(split, ["cheerful", "gloomy", "matter-of-fact"])
        wordings[split] = {one.last_turn.replace(plain[one.entity], "{}") for one in requests}
    assert not any(wordings[a] & wordings[b] for a, b in combinations(SPLITS, 2))


def test_plain_requests_have_no_tone_and_the_context_shows_the_wanted_one(
    packs: dict[str, Concept],
) -> None:
    concept = packs["tone"]
    for one in select(concept, "neutral"):
        assert tone(one.last_turn) == "neutral"
        assert "!" not in one.last_turn
    for direction, expected in (("raise", "cheerful"), ("lower", "gloomy")):
        context = concept.directions[direction].context
        assert context is not None
        assert context.demonstrations
        assert {tone(one.response) for one in context.demonstrations} == {expected}
        assert expected in context.system
