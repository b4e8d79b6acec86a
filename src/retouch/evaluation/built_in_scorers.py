"""The built-in scorers: of responses and of the drift, and those of `likelihood_scorers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import ConfigError, DataError
from retouch.core.thoughts import after_thought
from retouch.evaluation.correctness import final_number, is_correct
from retouch.evaluation.instruction_rules import follows, parse_rule
from retouch.evaluation.likelihood_scorers import (
    ChoiceScorer,
    LikelierScorer,
    LogOddsScorer,
    MultipleChoiceScorer,
    PerplexityScorer,
    PreferredScorer,
    ResponseLogOddsScorer,
)
from retouch.evaluation.response_classifier import (
    UNCLASSIFIED,
    Category,
    Decided,
    Tone,
    classify,
    is_clean,
    tone,
)
from retouch.evaluation.scorer import (
    ResponseScorer,
    Scorer,
    ScoringContext,
    ScoringResult,
    metric_text,
)
from retouch.evaluation.statistics import (
    ExampleValues,
    bootstrap,
    classified_rate,
    each_once,
    wilson,
)

MARGIN = 0.1  # nats a token by which an instruction makes a response likelier that follows it


def _category(example: Example, response: str) -> Category:
    return classify(response, example.last_turn, example.prefill)


def _answer(response: str) -> str:
    """A response without its thought; all of it where the thought is not finished."""
    found = after_thought(response)
    return response if found is None else found


class CategoryScorer(ResponseScorer):
    """The share of responses of one category, or of one tone."""

    def __init__(self, name: str, categorize: Callable[[Example, str], str]) -> None:
        self.name, self._categorize = name, categorize

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether it is this scorer's."""
        category = self._categorize(example, response)
        return category, category == self.name


class DecidedScorer(ResponseScorer):
    """The share of responses of one category among those that the rules can read.

    A response in a language that the rules do not cover, or a thought that is not finished, is in
    no rate: it may be an answer or a refusal.
    """

    def __init__(self, name: Decided) -> None:
        self.name = name

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether it is this scorer's."""
        category = _category(example, response)
        return category, category == self.name

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The rate, with Wilson's interval; its `n` is the number of responses that were read."""
        found = super().score(spec, examples, context)
        counts = tuple(float(one not in UNCLASSIFIED) for one in found.categories)
        values = ExampleValues(found.values.sums, counts)
        return ScoringResult(classified_rate(values), values, found.categories)


class CleanRefusalScorer(DecidedScorer):
    """The share of refusals that are whole sentences from their first word on."""

    name = "clean_refusal"

    def __init__(self) -> None:
        pass

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
        return _category(example, response), is_correct(_answer(response), example.accept)


class FinalNumberScorer(CorrectScorer):
    """The share of responses whose last number is the last one of the example's `accept`.

    As lm-eval's flexible extraction for GSM8K (arXiv 2110.14168), whose solutions end in the number
    that is asked for.
    """

    name = "final_number"

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether its last number is correct."""
        correct = final_number(" ".join(example.accept))
        found = final_number(_answer(response))
        return _category(example, response), correct is not None and correct == found


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
        responses = context.responses(examples)
        return _follows([follows(spec.rule, _answer(text)) for text in responses])


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


BUILT_IN: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        *(DecidedScorer(name) for name in get_args(Decided)),
        *(
            CategoryScorer(name, _category)
            for name in get_args(Category)
            if name not in get_args(Decided)
        ),
        CleanRefusalScorer(),
        CorrectScorer(),
        *(CategoryScorer(name, lambda _, response: tone(response)) for name in get_args(Tone)),
        FollowsScorer(),
        FollowsLikelihoodScorer(),
        FinalNumberScorer(),
        PreferredScorer(),
        LikelierScorer(),
        LogOddsScorer(),
        ResponseLogOddsScorer(),
        MultipleChoiceScorer("mc1", mass=False),
        MultipleChoiceScorer("mc2", mass=True),
        PerplexityScorer(),
        ChoiceScorer("group_gap", groups=True),
        ChoiceScorer("choice_bias", groups=False),
        KLScorer("kl_tokens", responses=False),
        KLScorer("kl_responses", responses=True),
    )
}
