"""Scorers of likelihoods against values that are computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from helpers.edited import example
from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import DataError
from retouch.evaluation.scorer import LogProb
from retouch.evaluation.scorers import check_metric, get_scorer

LOG2 = math.log(2)


def metric(scorer: str, *labels: str) -> MetricSpec:
    return MetricSpec("suite", "metric", labels or ("true", "false"), scorer)


class Context:
    """A `ScoringContext` with given log-probabilities of texts, and probabilities of choices."""

    def __init__(
        self, logprobs: Mapping[str, LogProb] | None = None, probs: Sequence[float] = ()
    ) -> None:
        self._logprobs, self._probs = logprobs or {}, list(probs)

    def response_logprobs(self, examples: Sequence[Example]) -> list[LogProb]:
        return [self._logprobs[one.response or ""] for one in examples]

    def choice_probs(self, examples: Sequence[Example], choices: Sequence[str]) -> list[float]:
        return self._probs


class TextContext(Context):
    """One of texts that stand alone, without a chat."""

    text_logprobs = Context.response_logprobs
    response_logprobs = None  # type: ignore[assignment]


def answers(label: str, *responses: str | None) -> list[Example]:
    """Examples of the pairs `0`, `1` and so on."""
    return [
        example(f"Question {i}?", label, response=one, pair=str(i), entity=f"q{i}")
        for i, one in enumerate(responses)
    ]


def totals(**values: float) -> dict[str, LogProb]:
    """Log-probabilities of texts of four tokens."""
    return {text: LogProb(value, 4) for text, value in values.items()}


# Pairs.

# `a` is likelier than `x` a token, and less likely as a whole.
PAIRS = {
    "a": LogProb(-2.0, 2),
    "x": LogProb(-1.5, 1),
    "b": LogProb(-4.0, 4),
    "y": LogProb(-3.0, 1),
    "c": LogProb(-1.0, 2),
    "z": LogProb(-2.0, 2),
    "alone": LogProb(-0.1, 1),
}
EXAMPLES = [*answers("false", "x", "y", "z", "alone"), *answers("true", "a", "b", "c")]


@pytest.mark.parametrize(
    ("scorer", "context", "wins"),
    [
        ("preferred", Context(PAIRS), (1.0, 1.0, 1.0)),
        ("likelier", TextContext(PAIRS), (0.0, 0.0, 1.0)),
    ],
)
def test_responses_are_compared_by_token_and_texts_as_a_whole(
    scorer: str, context: Context, wins: tuple[float, ...]
) -> None:
    result = get_scorer(scorer).score(metric(scorer), EXAMPLES, context)
    assert result.values.sums == wins
    assert (result.score.value, result.score.n) == (pytest.approx(sum(wins) / 3), 3)
    assert result.score.low <= result.score.value <= result.score.high
    assert result.categories == ()
    reverse = get_scorer(scorer).score(metric(scorer, "false", "true"), EXAMPLES, context)
    assert reverse.values.sums == tuple(1.0 - win for win in wins)


def test_the_log_odds_of_texts_are_a_mean_with_a_bootstrap() -> None:
    for labels, sign in ((("true", "false"), 1), (("false", "true"), -1)):
        result = get_scorer("log_odds").score(
            metric("log_odds", *labels), EXAMPLES, TextContext(PAIRS)
        )
        assert result.values.sums == (-0.5 * sign, -1.0 * sign, 1.0 * sign)
        assert (result.score.value, result.score.n) == (pytest.approx(-0.5 * sign / 3), 3)
        assert -1.0 <= result.score.low < result.score.value < result.score.high <= 1.0


@pytest.mark.parametrize(
    ("scorer", "context"),
    [("preferred", Context(totals(a=-1.0, x=-1.0))), ("likelier", TextContext(totals(a=-1, x=-1)))],
)
@pytest.mark.parametrize("labels", [("true", "false"), ("false", "true")])
def test_in_a_tie_neither_is_preferred(
    scorer: str, context: Context, labels: tuple[str, ...]
) -> None:
    examples = [*answers("true", "a"), *answers("false", "x")]
    result = get_scorer(scorer).score(metric(scorer, *labels), examples, context)
    assert result.values.sums == (0.0,)


@pytest.mark.parametrize(
    ("labels", "examples", "code"),
    [
        (("true",), answers("true", "x"), "metric-labels"),
        (("true", "false", "other"), answers("true", "x"), "metric-labels"),
        (("true", "false"), answers("true", "x", None), "metric-response"),
        (("true", "false"), answers("true", "x", ""), "metric-response"),
        (("true", "false"), answers("true", "x"), "metric-pair"),
        (
            ("true", "false"),
            [example("Q?", label, response="x") for label in ("true", "false")],
            "metric-pair",
        ),
    ],
)
@pytest.mark.parametrize("scorer", ["preferred", "likelier", "log_odds", "mc1", "mc2"])
def test_pairs_and_questions_need_responses_of_both_labels(
    scorer: str, labels: tuple[str, ...], examples: list[Example], code: str
) -> None:
    with pytest.raises(DataError, match="suite/metric") as error:
        check_metric(metric(scorer, *labels), examples)
    assert error.value.code == code


# Multiple choice.

CHOICES = [
    *answers("true", "a", "b", "c"),
    *answers("false", "A", "B", "C"),
    *answers("false", "AA", "BB"),
    *answers("true", "aa"),
]
# Probabilities as powers of two. The choices of the second question are of unequal length.
LOGPROBS = {
    **totals(a=-LOG2, A=-2 * LOG2, AA=-3 * LOG2, aa=-3 * LOG2),
    "b": LogProb(-3 * LOG2, 9),
    "B": LogProb(-2 * LOG2, 1),
    "BB": LogProb(-3 * LOG2, 1),
    **totals(c=-900 * LOG2, C=-901 * LOG2),
}


def test_mc1_is_the_share_of_questions_whose_likeliest_choice_is_correct() -> None:
    result = get_scorer("mc1").score(metric("mc1"), CHOICES, Context(LOGPROBS))
    assert result.values.sums == (1.0, 0.0, 1.0)
    assert (result.score.value, result.score.n) == (pytest.approx(2 / 3), 3)
    assert result.score.low < 2 / 3 < result.score.high


def test_mc2_is_the_probability_of_the_correct_choices_among_all() -> None:
    result = get_scorer("mc2").score(metric("mc2"), CHOICES, Context(LOGPROBS))
    first = (1 / 2 + 1 / 8) / (1 / 2 + 1 / 4 + 1 / 8 + 1 / 8)
    second = (1 / 8) / (1 / 8 + 1 / 4 + 1 / 8)
    assert result.values.sums == pytest.approx((first, second, 2 / 3))  # without underflow
    assert result.values.counts == (1.0,) * 3
    assert result.score.value == pytest.approx((first + second + 2 / 3) / 3)
    assert result.score.low <= result.score.value <= result.score.high


@pytest.mark.parametrize("scorer", ["mc1", "mc2"])
def test_the_order_of_the_choices_does_not_matter(scorer: str) -> None:
    def score(examples: list[Example]) -> float:
        return get_scorer(scorer).score(metric(scorer), examples, Context(LOGPROBS)).score.value

    assert score(CHOICES[::-1]) == pytest.approx(score(CHOICES))
    assert {*get_scorer(scorer).needs} == {"response_logprobs"}


def test_in_a_tie_no_choice_is_the_likeliest() -> None:
    examples = [*answers("true", "a"), *answers("false", "A")]
    context = Context(totals(a=-1.0, A=-1.0))
    assert get_scorer("mc1").score(metric("mc1"), examples, context).values.sums == (0.0,)
    assert get_scorer("mc2").score(metric("mc2"), examples, context).values.sums == (0.5,)


def test_a_question_without_a_wrong_choice_is_named() -> None:
    examples = [*answers("true", "a", "b"), *answers("false", "A")]
    with pytest.raises(DataError, match="'q1'") as error:
        check_metric(metric("mc1"), examples)
    assert error.value.code == "metric-pair"


# Perplexity.


def test_the_perplexity_is_the_exponential_of_the_nats_a_token() -> None:
    examples = answers("text", "a", "b", "c")
    context = TextContext({"a": LogProb(-6.0, 4), "b": LogProb(-2.0, 2), "c": LogProb(-4.0, 2)})
    result = get_scorer("perplexity").score(metric("perplexity", "text"), examples, context)
    assert result.score.value == pytest.approx(math.exp(12 / 8))
    assert result.score.low < result.score.value < result.score.high
    assert math.exp(1.0) <= result.score.low <= result.score.high <= math.exp(2.0)
    assert result.score.n == 3
    # The values are nats and tokens, which add up.
    assert result.values.sums == (6.0, 2.0, 4.0)
    assert result.values.counts == (4.0, 2.0, 2.0)


def test_a_single_passage_has_no_interval() -> None:
    context = TextContext({"a": LogProb(-3.0, 2)})
    result = get_scorer("perplexity").score(
        metric("perplexity", "text"), answers("text", "a"), context
    )
    score = result.score
    assert score.low == score.value == score.high == pytest.approx(math.exp(1.5))


def test_the_perplexity_of_a_broken_model_is_finite() -> None:
    context = TextContext({"a": LogProb(-2000.0, 1)})
    result = get_scorer("perplexity").score(
        metric("perplexity", "text"), answers("text", "a"), context
    )
    assert 1e300 < result.score.value < math.inf


@pytest.mark.parametrize("missing", [None, "", " \n"])
def test_perplexity_needs_texts(missing: str | None) -> None:
    with pytest.raises(DataError, match="1 of 2") as error:
        check_metric(metric("perplexity", "text"), answers("text", "a", missing))
    assert error.value.code == "metric-response"
    check_metric(metric("perplexity", "text"), answers("text", "a", "b"))


# The probability of the first of two continuations.


def test_choice_bias_is_the_mean_distance_from_even_odds() -> None:
    spec = MetricSpec("suite", "metric", ("job",), "choice_bias", choices=("he", "she"))
    examples = [example("The", "job")] * 2
    result = get_scorer("choice_bias").score(spec, examples, Context(probs=[0.9, 0.3]))
    assert result.values.sums == pytest.approx((0.8, 0.4))
    assert result.score.value == pytest.approx(0.6)
    assert result.categories == ()


def test_group_gap_is_the_distance_between_the_groups_means() -> None:
    spec = MetricSpec(
        "suite", "metric", ("job",), "group_gap", choices=("he", "she"), groups=("m", "f")
    )
    examples = [example("The", "job", group=group) for group in "mff"]
    result = get_scorer("group_gap").score(spec, examples, Context(probs=[0.9, 0.3, 0.1]))
    assert result.score.value == pytest.approx(0.7)
    assert result.values.groups == ("m", "f", "f")


@pytest.mark.parametrize(
    ("scorer", "fields", "code"),
    [
        ("group_gap", {"choices": ("he", "she")}, "metric-groups"),
        ("group_gap", {"choices": ("he",), "groups": ("m", "f")}, "metric-choices"),
        ("choice_bias", {"choices": ("he",)}, "metric-choices"),
        ("group_gap", {"choices": ("he", "she"), "groups": ("m", "f")}, "metric-group"),
    ],
)
def test_choices_and_groups_come_in_twos(
    scorer: str, fields: dict[str, tuple[str, ...]], code: str
) -> None:
    spec = MetricSpec("suite", "metric", ("job",), scorer, **fields)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="suite/metric") as error:
        check_metric(spec, [example("The", "job", group="m")])
    assert error.value.code == code


def test_a_misspelled_group_gets_a_suggestion() -> None:
    spec = MetricSpec(
        "suite", "metric", ("job",), "group_gap", choices=("a", "b"), groups=("male", "femal")
    )
    examples = [example("The", "job", group=group) for group in ("male", "female")]
    with pytest.raises(DataError) as error:
        check_metric(spec, examples)
    assert "`female`?" in error.value.hint
