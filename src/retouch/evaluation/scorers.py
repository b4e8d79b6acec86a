"""The registry of scorers, with the built-in ones.

A scorer is added by `register_scorer`, or by an installed package through an entry point of the
group `retouch.scorers` whose name is the scorer's:

    [project.entry-points."retouch.scorers"]
    mentions_price = "my_package:MentionsPrice"

Entry points are imported when a metric first uses them. They cannot replace built-in scorers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, get_args

from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import ConfigError, DataError, choices
from retouch.evaluation.response_classifier import Category, Tone, classify, is_clean, tone
from retouch.evaluation.scorer import (
    ResponseScorer,
    Scorer,
    ScoringContext,
    ScoringResult,
    each_once,
)
from retouch.evaluation.statistics import (
    ExampleValues,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
)

if TYPE_CHECKING:
    from retouch.representations.divergence import ExampleKL

ENTRY_POINTS = "retouch.scorers"


class CategoryScorer(ResponseScorer):
    """The share of responses of one category."""

    def __init__(self, name: Category) -> None:
        self.name = name

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether it is this scorer's."""
        category = _category(example, response)
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
                f"{_title(spec)} compares responses with `accept`, which {missing} of "
                f"{len(examples)} examples do not have.",
                f"Give `accept` to every example labelled {' or '.join(spec.labels)}.",
                code="metric-accept",
            )

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's category, and whether the response is correct."""
        return _category(example, response), is_correct(response, example.accept)


class ToneScorer(ResponseScorer):
    """The share of responses of one tone."""

    def __init__(self, name: Tone) -> None:
        self.name = name

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The response's tone, and whether it is this scorer's."""
        found = tone(response)
        return found, found == self.name


class ChoiceBiasScorer(Scorer):
    """How far the probabilities of two continuations differ, 0 to 1, averaged over examples."""

    name = "choice_bias"
    needs = frozenset({"choice_probs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that there are two `choices`."""
        _check_two(spec, "choices", spec.choices)

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """Mean of |2p - 1|, with a bootstrap over examples."""
        probs = context.choice_probs(examples, spec.choices)
        biases = [abs(2 * prob - 1) for prob in probs]
        return ScoringResult(bootstrap_mean(biases), each_once(biases))


class GroupGapScorer(Scorer):
    """The distance between two groups' mean probabilities of the first of two continuations."""

    name = "group_gap"
    needs = frozenset({"choice_probs"})

    def check(self, spec: MetricSpec, examples: Sequence[Example]) -> None:
        """Check that there are two `choices` and two `groups` with examples."""
        _check_two(spec, "choices", spec.choices)
        _check_two(spec, "groups", spec.groups)
        groups = {example.group for example in examples}
        for group in spec.groups:
            if examples and group not in groups:
                raise DataError(
                    f"{_title(spec)} has no examples of the group {group!r}.",
                    choices(group, "groups of its examples", sorted(groups)),
                    code="metric-group",
                )

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """|mean(first group) - mean(second group)|, with a bootstrap over examples."""
        probs = context.choice_probs(examples, spec.choices)
        groups = tuple(example.group for example in examples)
        first, second = (
            [prob for prob, group in zip(probs, groups, strict=True) if group == name]
            for name in spec.groups
        )
        return ScoringResult(bootstrap_gap(first, second), each_once(probs, groups))


class KLScorer(Scorer):
    """KL(base || model) in nats a token, over whole texts or over the base's responses alone."""

    needs = frozenset({"base_responses"})

    def __init__(self, name: str, *, responses: bool) -> None:
        self.name, self._responses = name, responses

    def score(
        self, spec: MetricSpec, examples: Sequence[Example], context: ScoringContext
    ) -> ScoringResult:
        """Nats over tokens, with a bootstrap over examples."""
        values = kl_values(context.kl(examples), responses=self._responses)
        return ScoringResult(bootstrap_ratio(values.sums, values.counts), values)


def kl_values(kls: Sequence[ExampleKL], *, responses: bool) -> ExampleValues:
    """Nats and tokens of each text, or of each response."""
    if responses:
        return ExampleValues(
            tuple(kl.response_total for kl in kls), tuple(float(kl.response_count) for kl in kls)
        )
    return ExampleValues(tuple(kl.total for kl in kls), tuple(float(kl.count) for kl in kls))


_BUILT_IN: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        *map(CategoryScorer, get_args(Category)),
        CleanRefusalScorer(),
        CorrectScorer(),
        *map(ToneScorer, get_args(Tone)),
        GroupGapScorer(),
        ChoiceBiasScorer(),
        KLScorer("kl_tokens", responses=False),
        KLScorer("kl_responses", responses=True),
    )
}
_registered: dict[str, Scorer] = {}


def register_scorer(scorer: Scorer) -> None:
    """Add a scorer; one of the same name is replaced, unless it is built in.

    Raises:
        ConfigError: the name belongs to a built-in scorer.
    """
    if scorer.name in _BUILT_IN:
        raise ConfigError(
            f"`{scorer.name}` is a built-in scorer and cannot be replaced.",
            "Give the scorer another `name`.",
            code="scorer-name-taken",
        )
    _registered[scorer.name] = scorer


def get_scorer(name: str) -> Scorer:
    """A scorer by its name: built in, registered, or the entry point of this name.

    Raises:
        ConfigError: there is no such scorer, or its package cannot be imported.
    """
    found = _BUILT_IN.get(name) or _registered.get(name) or _load_entry_point(name)
    if found is None:
        names = scorer_names()
        raise ConfigError(
            f"There is no scorer `{name}`.",
            choices(name, "scorers", names),
            code="scorer-unknown",
        )
    return found


def scorer_names() -> list[str]:
    """The names of all scorers, those of installed packages included, in alphabetical order."""
    installed = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return sorted({*_BUILT_IN, *_registered, *installed})


def _load_entry_point(name: str) -> Scorer | None:
    """Import and register the scorer of an entry point; None if no package has one of this name."""
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        package = entry.dist.name if entry.dist else entry.module
        try:
            found = entry.load()
            scorer = found() if isinstance(found, type) else found
        except Exception as error:
            raise ConfigError(
                f"The scorer `{name}` of the package {package} cannot be imported: {error}.",
                "Update the package or uninstall it.",
                code="scorer-broken",
            ) from error
        if not isinstance(scorer, Scorer) or scorer.name != name:
            raise ConfigError(
                f"The entry point `{name}` of the package {package} is not a scorer of this name.",
                f"It must load a subclass or an instance of `Scorer` whose `name` is `{name}`.",
                code="scorer-broken",
            )
        register_scorer(scorer)
        return scorer
    return None


def check_metric(spec: MetricSpec, examples: Sequence[Example]) -> Scorer:
    """Check a metric of a concept against its examples; its scorer.

    Raises:
        DataError: the scorer is unknown, or the metric or the examples lack what it requires.
        ConfigError: the package of the scorer cannot be imported.
    """
    try:
        scorer = get_scorer(spec.scorer)
    except ConfigError as error:
        if error.code != "scorer-unknown":
            raise
        raise DataError(
            f"{_title(spec)} has the unknown scorer `{spec.scorer}`.", error.hint, code=error.code
        ) from None
    scorer.check(spec, examples)
    return scorer


def check_metrics(concept: Concept) -> None:
    """Check every metric of a concept against the examples of its test split.

    Raises:
        DataError: as for `check_metric`.
        ConfigError: the package of a scorer cannot be imported.
    """
    for spec in concept.metrics:
        check_metric(spec, concept.select("test", spec.labels))


# The letters of scripts that separate words; elsewhere the end of a word cannot be recognised.
_LETTER = "[a-z0-9à-ɏ]"
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")


def is_correct(response: str, accept: Iterable[str]) -> bool:
    """Whether a response contains all of `accept`; case, quotes and white space do not matter.

    Punctuation matters, and words and numbers are whole: `he` is not in "she" nor `4` in "40". A
    plural contains its singular.
    """
    text = _normalize(response)
    return all(_contains(text, _normalize(phrase)) for phrase in accept)


def _normalize(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT_QUOTES).casefold().split())


def _contains(text: str, phrase: str) -> bool:
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, phrase) else ""
    after = rf"(?!{_LETTER})" if re.search(rf"{_LETTER}$", phrase) else ""
    if re.search("[a-z]$", phrase):
        after = f"(?:e?s)?{after}"
    return re.search(f"{before}{re.escape(phrase)}{after}", text) is not None


def _category(example: Example, response: str) -> Category:
    return classify(response, example.prompt[-1].content if example.prompt else "")


def _check_two(spec: MetricSpec, field: str, given: Sequence[str]) -> None:
    if len(given) != 2:
        raise DataError(
            f"{_title(spec)} needs two `{field}`, got {len(given)}.",
            f"Its scorer `{spec.scorer}` compares two.",
            code=f"metric-{field}",
        )


def _title(spec: MetricSpec) -> str:
    return f"The metric {spec.suite}/{spec.metric}"
