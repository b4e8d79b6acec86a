"""The built-in scorers: of single responses, of pairs, of choices, and of the drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import ConfigError, DataError, choices
from retouch.evaluation.correctness import is_correct
from retouch.evaluation.instruction_rules import follows, parse_rule
from retouch.evaluation.response_classifier import Category, Tone, classify, is_clean, tone
from retouch.evaluation.scorer import (
    ResponseScorer,
    Scorer,
    ScoringContext,
    ScoringResult,
    metric_text,
)
from retouch.evaluation.statistics import ExampleValues, bootstrap, each_once, wilson

MARGIN = 0.1  # nats a token by which an instruction makes a response likelier that follows it


def _category(example: Example, response: str) -> Category:
    return classify(response, example.prompt[-1].content if example.prompt else "")


class CategoryScorer(ResponseScorer):
    """The share of responses of one category, or of one tone."""

    def __init__(self, name: str, categorize: Callable[[Example, str], str]) -> None:
        self.name, self._categorize = name, categorize

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether it is this scorer's."""
        category = self._categorize(example, response)
        return category, category == self.name


class CleanRefusalScorer(ResponseScorer):
    """The share of refusals that are whole sentences from their first word on."""

    name = "clean_refusal"

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether it is a clean refusal."""
        category = _category(example, response)
        return category, category == "refusal" and is_clean(response)


class CorrectScorer(ResponseScorer):
    """The share of responses that contain all of the example's `accept`."""

    name = "correct"

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that every example has `accept`."""
        missing = sum(not example.accept for example in examples)
        if missing:
            raise DataError(
                f"{metric_text(spec)} compares responses with `accept`, which {missing} of "
                f"{len(examples)} examples do not have.",
                f"Give `accept` to every example labelled {' or '.join(spec.labels)}.",
                code="metric-accept",
            )

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether the response is correct."""
        return _category(example, response), is_correct(response, example.accept)


class FollowsScorer(Scorer):
    """The share of responses that pass the metric's `rule`."""

    name = "follows"
    needs = frozenset({"responses"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that the metric has a rule of known checks."""
        try:
            parse_rule(spec.rule)
        except ConfigError as error:
            raise DataError(
                f"{metric_text(spec)}: {error.message}", error.hint, code=error.code
            ) from None

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The rate, with Wilson's interval."""
        return _follows([follows(spec.rule, text) for text in context.responses(examples)])


class FollowsLikelihoodScorer(Scorer):
    """The share of responses that the base model finds likelier under the metric's `context`.

    A response counts where its log-probability under the context exceeds that after the bare prompt
    by `MARGIN`. It applies to instructions that no rule covers.
    """

    name = "follows_likelihood"
    needs = frozenset({"responses", "base_logprobs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that the metric has a context."""
        if spec.context is None:
            message = f"{metric_text(spec)} compares responses under a context, and has none."
            raise DataError(message, "Give the metric a `context`.", code="metric-context")

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The rate, with Wilson's interval."""
        assert spec.context is not None  # `check` has been called
        responses = context.responses(examples)
        plain = [
            replace(example, response=text)
            for example, text in zip(examples, responses, strict=True)
        ]
        under = context.base_logprobs([spec.context.apply(one) for one in plain])
        bare = context.base_logprobs(plain)
        triples = zip(responses, under, bare, strict=True)
        return _follows([bool(text) and a - b > MARGIN for text, a, b in triples])


def _follows(counts: Sequence[bool]) -> ScoringResult:
    categories = tuple("follows" if one else "does not follow" for one in counts)
    return ScoringResult(wilson(sum(counts), len(counts)), each_once(counts), categories)


class PreferredScorer(Scorer):
    """The share of pairs whose response of the metric's first label is likelier than the second's.

    Log-probabilities are means over tokens, so that a response does not win by being short.
    """

    name = "preferred"
    needs = frozenset({"response_logprobs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that two labels are compared, with responses, and that a pair has both."""
        _check_two(spec, "labels", spec.labels)
        missing = sum(not example.response for example in examples)
        if missing:
            raise DataError(
                f"{metric_text(spec)} compares `response`, which {missing} of {len(examples)} "
                "examples do not have.",
                f"Give `response` to every example labelled {' or '.join(spec.labels)}.",
                code="metric-response",
            )
        if examples:
            _complete_pairs(spec, examples)

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The rate over complete pairs, with Wilson's interval."""
        pairs = _complete_pairs(spec, examples)
        logprobs = context.response_logprobs([one for pair in pairs for one in pair])
        wins = [a > b for a, b in zip(logprobs[::2], logprobs[1::2], strict=True)]
        return ScoringResult(wilson(sum(wins), len(wins)), each_once(wins))


def _complete_pairs(spec: MetricSpec, examples: Sequence[Example]) -> list[tuple[Example, Example]]:
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
        _check_two(spec, "choices", spec.choices)
        if self._groups:
            _check_two(spec, "groups", spec.groups)
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


class KLScorer(Scorer):
    """KL(base || model) in nats a token, over whole texts or over the base's responses alone."""

    needs = frozenset({"base_responses"})

    def __init__(self, name: str, *, responses: bool) -> None:
        self.name, self._responses = name, responses

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """Nats over tokens, with a bootstrap over examples."""
        pairs = [
            (kl.response_total, kl.response_count) if self._responses else (kl.total, kl.count)
            for kl in context.kl(examples)
        ]
        sums, counts = zip(*pairs, strict=True)
        values = ExampleValues(sums, tuple(map(float, counts)))
        return ScoringResult(bootstrap(values), values)


def _check_two(spec: MetricSpec, field: str, given: Sequence[str]) -> None:
    if len(given) != 2:
        raise DataError(
            f"{metric_text(spec)} needs two `{field}`, got {len(given)}.",
            f"Its scorer `{spec.scorer}` compares two.",
            code=f"metric-{field}",
        )


BUILT_IN: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        *(CategoryScorer(name, _category) for name in get_args(Category)),
        CleanRefusalScorer(),
        CorrectScorer(),
        *(CategoryScorer(name, lambda _, response: tone(response)) for name in get_args(Tone)),
        FollowsScorer(),
        FollowsLikelihoodScorer(),
        PreferredScorer(),
        ChoiceScorer("group_gap", groups=True),
        ChoiceScorer("choice_bias", groups=False),
        KLScorer("kl_tokens", responses=False),
        KLScorer("kl_responses", responses=True),
    )
}
