"""Scorers of what a model finds likely: of responses, of choices, of pairs, of running text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import DataError, choices
from retouch.core.types import Score
from retouch.evaluation.scorer import (
    Scorer,
    ScoringContext,
    ScoringResult,
    check_two,
    metric_text,
)
from retouch.evaluation.statistics import ExampleValues, bootstrap, each_once, wilson

MAX_NATS = 700.0  # a token: the exponential of more is no finite number

Pair = tuple[Example, Example]


class PreferredScorer(Scorer):
    """The share of pairs whose response of the metric's first label is likelier than the second's.

    Log-probabilities are means over tokens, so that a response does not win by being short.
    """

    name = "preferred"
    needs = frozenset({"response_logprobs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that two labels are compared, with responses, and that a pair has both."""
        check_two(spec, "labels", spec.labels)
        _check_responses(spec, examples)
        if examples:
            _complete_pairs(spec, examples)

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The rate over complete pairs, with Wilson's interval."""
        return _rate([one > 0 for one in self._differences(spec, examples, context)])

    def _differences(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> list[float]:
        """How much likelier the first of each complete pair is."""
        pairs = [one for pair in _complete_pairs(spec, examples) for one in pair]
        values = self._values(pairs, context)
        return [a - b for a, b in zip(values[::2], values[1::2], strict=True)]

    def _values(self, examples: Sequence[Example], context: ScoringContext) -> list[float]:
        """What is compared of each example."""
        return [one.mean for one in context.response_logprobs(examples)]


class LikelierScorer(PreferredScorer):
    """The share of pairs whose text of the metric's first label is likelier than the second's.

    The texts stand alone, without a chat, and differ in few words, so that whole log-probabilities
    are compared, as lm-eval does for CrowS-Pairs (arXiv 2010.00133).
    """

    name = "likelier"
    needs = frozenset({"text_logprobs"})

    def _values(self, examples: Sequence[Example], context: ScoringContext) -> list[float]:
        return [one.total for one in context.text_logprobs(examples)]


class LogOddsScorer(LikelierScorer):
    """How much likelier the text of the first label is than that of the second, in nats.

    The mean over pairs. The share counts a difference that is hardly there as much as a large one.
    """

    name = "log_odds"

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The mean over complete pairs, with a bootstrap over them."""
        values = each_once(self._differences(spec, examples, context))
        return ScoringResult(bootstrap(values), values)


class ResponseLogOddsScorer(LogOddsScorer):
    """The same of two responses to one prompt."""

    name = "response_log_odds"
    needs = frozenset({"response_logprobs"})

    def _values(self, examples: Sequence[Example], context: ScoringContext) -> list[float]:
        return [one.total for one in context.response_logprobs(examples)]


class MultipleChoiceScorer(Scorer):
    """Multiple choice as in TruthfulQA (arXiv 2109.07958): the choices of a pair are the responses.

    The metric's first label is that of correct choices, the second that of the others. MC1: whether
    the likeliest choice is a correct one. MC2: the probability of the correct choices among all.
    Log-probabilities are those of whole choices.
    """

    needs = frozenset({"response_logprobs"})
    by_question = True

    def __init__(self, name: str, *, mass: bool) -> None:
        self.name, self._mass = name, mass

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that there are two labels, with responses, and that each question has both."""
        check_two(spec, "labels", spec.labels)
        _check_responses(spec, examples)
        for question in questions(examples):
            if question[0].pair is None or {one.label for one in question} != set(spec.labels):
                raise DataError(
                    f"{metric_text(spec)} compares the correct choices of a question with the "
                    f"others; the question {question[0].entity!r} lacks one kind.",
                    f"Give choices labelled {' and '.join(spec.labels)} the same pair.",
                    code="metric-pair",
                )

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """MC1 with Wilson's interval, or MC2 with a bootstrap over questions."""
        grouped = questions(examples)
        found = iter(context.response_logprobs([one for each in grouped for one in each]))
        values = []
        for question in grouped:
            totals = [(one.label == spec.labels[0], next(found).total) for one in question]
            right = [total for correct, total in totals if correct]
            best = max(total for _, total in totals)
            if self._mass:
                weights = [math.exp(total - best) for _, total in totals]
                values.append(sum(math.exp(total - best) for total in right) / sum(weights))
            else:  # in a tie no choice is the likeliest
                wrong = [total for correct, total in totals if not correct]
                values.append(float(max(right) > max(wrong)))
        if self._mass:
            return ScoringResult(bootstrap(each_once(values)), each_once(values))
        return _rate([bool(value) for value in values])


class PerplexityScorer(Scorer):
    """exp of the mean negative log-probability of running text, over its tokens."""

    name = "perplexity"
    needs = frozenset({"text_logprobs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that the examples have texts."""
        _check_responses(spec, examples)

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The perplexity, with a bootstrap over passages; the values are nats."""
        found = context.text_logprobs(examples)
        values = ExampleValues(
            tuple(-one.total for one in found), tuple(float(one.count) for one in found)
        )
        nats = bootstrap(values)
        value, low, high = (
            math.exp(min(one, MAX_NATS)) for one in (nats.value, nats.low, nats.high)
        )
        return ScoringResult(Score(value, low, high, nats.n), values)


class ChoiceScorer(Scorer):
    """A statistic of the probability p of the first of two continuations, bootstrapped.

    Without groups, how far both probabilities differ: the mean of |2p - 1|, 0 to 1. With groups,
    the distance between the means of p of two groups.
    """

    needs = frozenset({"choice_probs"})

    def __init__(self, name: str, *, groups: bool) -> None:
        self.name, self._groups = name, groups

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that there are two `choices` and, if needed, two `groups` with examples."""
        check_two(spec, "choices", spec.choices)
        if self._groups:
            check_two(spec, "groups", spec.groups)
            groups = {example.group for example in examples}
            for group in spec.groups:
                if examples and group not in groups:
                    raise DataError(
                        f"{metric_text(spec)} has no examples of the group {group!r}.",
                        choices(group, "groups of its examples", sorted(groups)),
                        code="metric-group",
                    )

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The statistic, with a bootstrap over examples."""
        probs = context.choice_probs(examples, spec.choices)
        values = each_once([abs(2 * prob - 1) for prob in probs])
        if self._groups:
            values = each_once(probs, tuple(example.group for example in examples))
        return ScoringResult(bootstrap(values), values)


def _rate(wins: Sequence[bool]) -> ScoringResult:
    return ScoringResult(wilson(sum(wins), len(wins)), each_once(wins))


def _check_responses(spec: MetricSpec, examples: Sequence[Example]) -> None:
    missing = sum(not (example.response or "").strip() for example in examples)
    if missing:
        raise DataError(
            f"{metric_text(spec)} compares `response`, which {missing} of {len(examples)} "
            "examples do not have.",
            f"Give `response` to every example labelled {' or '.join(spec.labels)}.",
            code="metric-response",
        )


def questions(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of each pair, in order of the first."""
    found: dict[str | None, list[Example]] = {}
    for one in examples:
        found.setdefault(one.pair, []).append(one)
    return list(found.values())


def _complete_pairs(spec: MetricSpec, examples: Sequence[Example]) -> list[Pair]:
    """The examples of the metric's two labels that have the same pair, in order of the first.

    Raises:
        DataError: no pair has both labels.
    """
    first, second = (
        {one.pair: one for one in examples if one.label == label and one.pair}
        for label in spec.labels
    )
    pairs = [(one, second[pair]) for pair, one in first.items() if pair in second]
    if not pairs:
        labels = " and one labelled ".join(spec.labels)
        raise DataError(
            f"{metric_text(spec)} compares the examples of a `pair`; none of {len(examples)} "
            "examples is in a pair with both labels.",
            f"Give an example labelled {labels} the same pair, or measure more examples.",
            code="metric-pair",
        )
    return pairs
