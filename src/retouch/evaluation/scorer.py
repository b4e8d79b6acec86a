"""The interface of a scorer: how the values of a metric are computed from a model's behaviour.

A scorer of responses is a subclass of `ResponseScorer` with one method:

    class MentionsPrice(ResponseScorer):
        name = "mentions_price"

        def classify(self, example: Example, response: str) -> tuple[str, bool]:
            found = "$" in response
            return ("price" if found else "no price"), found

`evaluation.built_in_scorers` and `evaluation.likelihood_scorers` have the built-in ones,
`evaluation.scorers` the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import Score
from retouch.evaluation.statistics import ExampleValues, each_once, wilson

if TYPE_CHECKING:
    from retouch.representations.divergence import ExampleKL

Need = Literal[
    "responses",
    "base_responses",
    "base_logprobs",
    "choice_probs",
    "response_logprobs",
    "text_logprobs",
]


@dataclass(frozen=True)
class LogProb:
    """The log-probability of a text.

    Attributes:
        total: of all its tokens, in nats.
        count: the number of its tokens.
    """

    total: float
    count: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.count


class ScoringContext(Protocol):
    """What a scorer may use of the model that is measured: the base or the edited one."""

    def responses(self, examples: Sequence[Example]) -> list[str]:
        """The model's responses; after a prefill, how the model continues it.

        Requires the need `responses`.
        """

    def choice_probs(self, examples: Sequence[Example], choices: Sequence[str]) -> list[float]:
        """P(first) / (P(first) + P(second)) of two continuations, for each example."""

    def response_logprobs(self, examples: Sequence[Example]) -> list[LogProb]:
        """Log-probability of each example's `response` after its prompt, without its end."""

    def text_logprobs(self, examples: Sequence[Example]) -> list[LogProb]:
        """Log-probability of each example's `response` as a text of its own, without a chat."""

    def base_logprobs(self, examples: Sequence[Example]) -> list[float]:
        """Mean log-probability of each example's `response` under the base, nats a token."""

    def kl(self, examples: Sequence[Example]) -> list[ExampleKL]:
        """KL(base || model) on the base model's responses, for each example; 0 for the base.

        Requires the need `base_responses`.
        """


@dataclass(frozen=True)
class ScoringResult:
    """A metric of one model.

    Attributes:
        score: the metric.
        values: the values of the examples that it is computed from.
        categories: the category of each response; empty for a scorer that reads none.
    """

    score: Score
    values: ExampleValues
    categories: tuple[str, ...] = ()


class Scorer(ABC):
    """Computes a metric from a model's behaviour on examples.

    Attributes:
        name: the name in a metric's `scorer`.
        needs: what is computed for it: `responses` (the model's), `base_responses` (for the KL
            divergence from the base), `base_logprobs`, `choice_probs`, `response_logprobs` and
            `text_logprobs`.
        by_question: whether a value is that of several examples of one `pair`, which a limit of the
            number of examples must not divide.
    """

    name: str
    needs: ClassVar[frozenset[Need]] = frozenset()
    by_question: ClassVar[bool] = False

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:  # noqa: B027
        """Check that the metric is complete and the examples have what it requires.

        Raises:
            DataError: something is missing.
        """

    @abstractmethod
    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The metric of one model, on at least one example."""


class ResponseScorer(Scorer):
    """A scorer that classifies each response; the score is a rate with Wilson's interval."""

    needs = frozenset({"responses"})

    @abstractmethod
    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The category of a response, and whether the metric counts it."""

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """The share of the responses that count."""
        pairs = zip(examples, context.responses(examples), strict=True)
        categories, counts = zip(*(self.classify(*pair) for pair in pairs), strict=True)
        return ScoringResult(wilson(sum(counts), len(counts)), each_once(counts), categories)


def metric_text(spec: MetricSpec) -> str:
    """A metric in an error."""
    return f"The metric {spec.suite}/{spec.metric}"


def check_two(spec: MetricSpec, field: str, given: Sequence[str]) -> None:
    """Check that a metric names two of something, such as labels.

    Raises:
        DataError: it names fewer or more.
    """
    if len(given) != 2:
        raise DataError(
            f"{metric_text(spec)} needs two `{field}`, got {len(given)}.",
            f"Its scorer `{spec.scorer}` compares two.",
            code=f"metric-{field}",
        )
