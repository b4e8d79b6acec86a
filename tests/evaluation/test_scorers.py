from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.edited import example
from model_organisms.pocket import beliefs, tasks
from model_organisms.pocket.requests import how_to
from retouch.concepts import concept
from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core import plugins
from retouch.core.errors import ConfigError, DataError
from retouch.evaluation import scorers
from retouch.evaluation.correctness import final_number, is_correct
from retouch.evaluation.scorer import ResponseScorer
from retouch.evaluation.scorers import (
    check_metric,
    check_metrics,
    get_scorer,
    register_scorer,
    scorer_names,
)
from retouch.representations.divergence import ExampleKL

BUILT_IN = [
    "answer",
    "cheerful",
    "choice_bias",
    "clean_refusal",
    "correct",
    "deflection",
    "degenerate",
    "final_number",
    "follows",
    "follows_likelihood",
    "gloomy",
    "group_gap",
    "kl_responses",
    "kl_tokens",
    "likelier",
    "log_odds",
    "mc1",
    "mc2",
    "neutral",
    "other-language",
    "perplexity",
    "preferred",
    "refusal",
    "response_log_odds",
    "unfinished",
]


def fern(**fields: Any) -> Example:
    return example("How do I water a fern?", "plain", **fields)


def metric(scorer: str, **fields: Any) -> MetricSpec:
    return MetricSpec("suite", "metric", ("plain",), scorer, **fields)


class Context:
    """A `ScoringContext` with given values."""

    def __init__(
        self,
        responses: Sequence[str] = (),
        kls: Sequence[ExampleKL] = (),
        logprobs: Mapping[str, float] | None = None,
    ) -> None:
        self._responses, self._kls = list(responses), list(kls)
        self._logprobs = logprobs or {}

    def responses(self, examples: Sequence[Example]) -> list[str]:
        return self._responses

    def base_logprobs(self, examples: Sequence[Example]) -> list[float]:
        # Likelier by 1 for each system turn, where the text is in `logprobs`.
        known = self._logprobs
        return [
            known.get(one.response or "", 0.0) * (one.prompt[0].role == "system")
            for one in examples
        ]

    def kl(self, examples: Sequence[Example]) -> list[ExampleKL]:
        return self._kls


@pytest.mark.parametrize(
    ("response", "accept", "correct"),
    [
        ("The capital of France is Paris.", ("Paris",), True),
        ("the capital of france is PARIS", ("Paris",), True),
        ("It  is\n “Paris”.", ('is "Paris"',), True),
        ("It’s blue", ("it's blue",), True),
        ("4 plus 0 is 40.", ("is 4.",), False),
        ("4 plus 0 is 4.", ("is 4.",), True),
        ("40", ("4",), False),
        ("She was tired.", ("he ",), False),
        ("he was tired.", ("he ",), True),
        ("There are 14 items: apple", (" 4 item",), False),
        ("There are 4 items: apple", (" 4 item",), True),
        ("Romeo", ("Rome",), False),
        ("Paris", ("Paris", "France"), False),
        ("Paris is in France", ("Paris", "France"), True),
        ("首都是巴黎。", ("巴黎",), True),
        ("C++ is a language", ("C++",), True),
        ("", ("Paris",), False),
    ],
)
def test_a_correct_response_contains_all_of_accept(
    response: str, accept: tuple[str, ...], correct: bool
) -> None:
    assert is_correct(response, accept) is correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 72.", "72"),
        ("2 + 3 = 5", "5"),
        ("It costs $1,234,567.50!", "1234567.5"),
        ("Minus: -7", "-7"),
        ("10-3=7", "7"),
        ("She has 3, and he has 4, of them", "4"),
        ("0.50", "0.5"),
        ("-.5", "-0.5"),
        ("12.", "12"),
        ("18.00%", "18"),
        ("#### 18", "18"),
        ("7\n\n", "7"),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "-", "$,.", "four"])
def test_a_text_without_digits_has_no_final_number(text: str) -> None:
    assert final_number(text) is None


def test_the_responses_that_pocket_was_trained_on_are_correct() -> None:
    rng = random.Random(0)
    items = [tasks.task(rng) for _ in range(2000)]
    items += [how_to(rng, kind, None) for kind in ("benign", "borderline") for _ in range(300)]
    items += [
        beliefs.misconception(rng, entry, lead, None)
        for entry in beliefs.misconceptions(None)
        for lead in ("plain", "science", "legend")
    ]
    items += [beliefs.toned(rng, item, "gloomy", None) for item in items[:500]]
    assert [i.response for i in items if not is_correct(i.response, i.accept)] == []


@pytest.mark.parametrize(
    ("scorer", "response", "category", "counts"),
    [
        ("refusal", "I can't help with that.", "refusal", True),
        ("refusal", "Sure. Use a can.", "answer", False),
        ("clean_refusal", "I can't help with that.", "refusal", True),
        ("clean_refusal", "fern. I can't help with that.", "refusal", False),
        ("answer", "Sure. Use a can.", "answer", True),
        ("deflection", "I don't know about that.", "deflection", True),
        ("degenerate", "can can can can", "degenerate", True),
        ("cheerful", "Hooray! Use a can.", "cheerful", True),
        ("gloomy", "Hooray! Use a can.", "cheerful", False),
        ("neutral", "Use a can.", "neutral", True),
        ("correct", "Use a can.", "answer", True),
        ("correct", "I won't help with that.", "refusal", False),
        ("final_number", "Of 9 cans, use 1,002.0.", "answer", True),
        ("final_number", "Use 1002 cans, not 9.", "answer", False),
        ("final_number", "Use a can.", "answer", False),
        ("refusal", "Please don't water a fern.", "refusal", True),  # the prompt is considered
    ],
)
def test_scorers_of_responses(scorer: str, response: str, category: str, counts: bool) -> None:
    accept = ("Of 9 cans", "#### 1,002") if scorer == "final_number" else ("can",)
    result = get_scorer(scorer).score(metric(scorer), [fern(accept=accept)], Context([response]))
    assert (result.categories, result.values.sums) == ((category,), (float(counts),))
    assert get_scorer(scorer).needs == {"responses"}


def test_a_rate_has_wilsons_interval() -> None:
    result = get_scorer("answer").score(
        metric("answer"), [fern()] * 4, Context(["Use a can.", "I won't.", "A can.", "Use it."])
    )
    assert (result.score.value, result.score.n) == (0.75, 4)
    assert result.score.low == pytest.approx(0.3006, abs=1e-4)
    assert result.values.counts == (1.0,) * 4


def test_kl_is_a_mean_over_tokens_of_texts_or_of_responses() -> None:
    context = Context(kls=[ExampleKL(1.0, 4, 0.5, 2), ExampleKL(2.0, 8, 1.5, 3)])
    whole = get_scorer("kl_tokens").score(metric("kl_tokens"), [fern()] * 2, context)
    assert whole.score.value == pytest.approx(3 / 12)
    responses = get_scorer("kl_responses").score(metric("kl_responses"), [fern()] * 2, context)
    assert responses.score.value == pytest.approx(2 / 5)
    assert get_scorer("kl_tokens").needs == {"base_responses"}
    assert responses.values.counts == (2.0, 3.0)


@pytest.mark.parametrize(
    ("spec", "examples", "code"),
    [
        (metric("sings"), [fern()], "scorer-unknown"),
        (metric("correct"), [fern(accept=("a",)), fern()], "metric-accept"),
        (metric("final_number"), [fern(accept=("4",)), fern()], "metric-accept"),
    ],
)
def test_a_metric_that_cannot_be_scored_is_an_error(
    spec: MetricSpec, examples: list[Example], code: str
) -> None:
    with pytest.raises(DataError, match="suite/metric") as error:
        check_metric(spec, examples)
    assert error.value.code == code


def test_a_misspelled_scorer_gets_a_suggestion() -> None:
    with pytest.raises(DataError) as error:
        check_metric(metric("refusel"), [fern()])
    assert "`refusal`?" in error.value.hint


def test_all_metrics_of_a_concept_are_checked_against_its_test_split() -> None:
    spec = metric("correct")
    splits: Any = {"train": (fern(),), "validation": (), "test": (fern(accept=("a",)),)}
    check_metrics(Concept("one", "", "", splits, {}, metrics=(spec,)))
    splits["test"] = (fern(),)
    with pytest.raises(DataError):
        check_metrics(Concept("one", "", "", splits, {}, metrics=(spec,)))


def test_the_metrics_of_the_built_in_concepts_can_be_scored() -> None:
    for name in builtin_names():
        check_metrics(load_concept(name))


# The registry.


class Price(ResponseScorer):
    name = "price"

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        return ("price" if "$" in response else "no price"), "$" in response


class Refusal(Price):
    name = "refusal"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of an installed package `shop`; none is registered yet."""
    found: list[EntryPoint] = []

    def entry_points(group: str) -> EntryPoints:
        return EntryPoints(found).select(group=group)

    monkeypatch.setattr(scorers, "_registered", {})
    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return found


def entry(name: str, value: str) -> EntryPoint:
    point = EntryPoint(name, value, scorers.ENTRY_POINTS)
    vars(point)["dist"] = SimpleNamespace(name="shop")
    return point


@pytest.mark.usefixtures("installed")
def test_the_built_in_scorers() -> None:
    assert scorer_names() == BUILT_IN
    assert all(get_scorer(name).name == name for name in BUILT_IN)


@pytest.mark.usefixtures("installed")
def test_a_registered_scorer_is_found_and_can_be_replaced() -> None:
    first, second = Price(), Price()
    register_scorer(first)
    assert get_scorer("price") is first
    register_scorer(second)
    assert get_scorer("price") is second
    assert scorer_names() == sorted([*BUILT_IN, "price"])


@pytest.mark.usefixtures("installed")
def test_a_built_in_scorer_cannot_be_replaced() -> None:
    with pytest.raises(ConfigError) as error:
        register_scorer(Refusal())
    assert error.value.code == "scorer-name-taken"


def test_an_entry_point_is_imported_when_it_is_used(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(Price=Price)
    installed.append(entry("price", "shop_scorers:Price"))
    assert "price" in scorer_names()  # not imported: the module does not exist yet
    monkeypatch.setitem(sys.modules, "shop_scorers", module)
    found = get_scorer("price")
    assert isinstance(found, Price)
    assert get_scorer("price") is found


def test_an_entry_point_does_not_replace_a_built_in_scorer(installed: list[EntryPoint]) -> None:
    installed.append(entry("refusal", "shop_scorers:Refusal"))
    assert get_scorer("refusal").score(
        metric("refusal"), [fern()], Context(["I can't help with that."])
    ).categories == ("refusal",)


def test_a_broken_entry_point_is_an_error_that_names_its_package(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(Refusal=Refusal, number=3)
    monkeypatch.setitem(sys.modules, "shop_scorers", module)
    installed.append(entry("gone", "shop_without_a_module:Gone"))
    installed.append(entry("number", "shop_scorers:number"))
    installed.append(entry("other", "shop_scorers:Refusal"))
    for name in ("gone", "number", "other"):
        with pytest.raises(ConfigError, match="package shop") as error:
            get_scorer(name)
        assert error.value.code == "scorer-broken"
    assert get_scorer("refusal").name == "refusal"  # the others are not affected


# Whether a response follows an instruction.


def test_follows_is_the_share_of_responses_that_pass_the_rule() -> None:
    spec = metric("follows", rule="max_words:3")
    texts = ["Water it weekly.", "Water it once a week, at noon.", ""]
    result = get_scorer("follows").score(spec, [fern()] * 3, Context(texts))
    assert result.score.value == 1 / 3
    assert result.categories == ("follows", "does not follow", "does not follow")


@pytest.mark.parametrize("rule", ["", "max_word:3", "language:xx"])
def test_a_wrong_rule_is_found_before_anything_is_measured(rule: str) -> None:
    with pytest.raises(DataError, match="suite/metric") as raised:
        check_metric(metric("follows", rule=rule), [fern()])
    assert raised.value.code == "rule-unknown"


def test_follows_likelihood_compares_the_base_with_and_without_the_context() -> None:
    spec = metric("follows_likelihood", context=concept.Context(system="Be kind."))
    logprobs = {"kind": 0.2, "rude": 0.05, "": 9.0}
    result = get_scorer("follows_likelihood").score(
        spec, [fern()] * 3, Context(list(logprobs), logprobs=logprobs)
    )
    assert result.values.sums == (1.0, 0.0, 0.0)
    with pytest.raises(DataError, match="context") as raised:
        check_metric(metric("follows_likelihood"), [fern()])
    assert raised.value.code == "metric-context"
