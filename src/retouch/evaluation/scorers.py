"""The registry of scorers: the built-in ones, registered ones, and those of other packages.

A scorer is added by `register_scorer`, or by an installed package through an entry point of the
group `retouch.scorers` whose name is the scorer's:

    [project.entry-points."retouch.scorers"]
    mentions_price = "my_package:MentionsPrice"

Entry points are imported when a metric first uses them. They cannot replace built-in scorers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import ConfigError, DataError, choices
from retouch.core.plugins import find_plugins, load_plugin
from retouch.core.types import Direction
from retouch.evaluation.built_in_scorers import BUILT_IN
from retouch.evaluation.response_classifier import UNCLASSIFIED
from retouch.evaluation.scorer import ResponseScorer, Scorer, metric_text

ENTRY_POINTS = "retouch.scorers"

_registered: dict[str, Scorer] = {}


def register_scorer(scorer: Scorer) -> None:
    """Add a scorer; one of the same name is replaced, unless it is built in.

    Raises:
        ConfigError: the name belongs to a built-in scorer.
    """
    if scorer.name in BUILT_IN:
        raise ConfigError(
            f"`{scorer.name}` is a built-in scorer and cannot be replaced.",
            "Give the scorer another `name`.",
            code="scorer-name-taken",
        )
    _registered[scorer.name] = scorer


def get_scorer(name: str) -> Scorer:
    """A scorer by its name: built in, registered, or the entry point of this name.

    Raises:
        ConfigError: there is no such scorer, or its entry point cannot be loaded.
    """
    if found := BUILT_IN.get(name) or _registered.get(name):
        return found
    plugins = find_plugins(ENTRY_POINTS, BUILT_IN)
    if name not in plugins:
        hint = choices(name, "scorers", scorer_names())
        raise ConfigError(f"There is no scorer `{name}`.", hint, code="scorer-unknown")

    def instantiate(found: Any) -> Scorer:
        scorer = found() if isinstance(found, type) else found
        if not isinstance(scorer, Scorer) or scorer.name != name:
            raise TypeError(f"it must load a class or an instance of `Scorer` named `{name}`")
        return scorer

    scorer = load_plugin(plugins[name], "scorer", instantiate, ConfigError, "scorer-broken")
    register_scorer(scorer)
    return scorer


def scorer_names() -> list[str]:
    """The names of all scorers, those of installed packages included, in alphabetical order."""
    return sorted({*BUILT_IN, *_registered, *find_plugins(ENTRY_POINTS, BUILT_IN)})


def check_metric(spec: MetricSpec, examples: Sequence[Example]) -> Scorer:
    """Check a metric of a concept against its examples; its scorer.

    Raises:
        DataError: the scorer is unknown, or the metric or the examples lack what it requires.
        ConfigError: the entry point of the scorer cannot be loaded.
    """
    try:
        scorer = get_scorer(spec.scorer)
    except ConfigError as error:
        if error.code != "scorer-unknown":
            raise
        raise DataError(
            f"{metric_text(spec)} has the unknown scorer `{spec.scorer}`.",
            error.hint,
            code=error.code,
        ) from None
    scorer.check(spec, examples)
    return scorer


def check_metrics(concept: Concept) -> None:
    """Check every metric of a concept against the examples of its test split.

    Raises:
        DataError: as for `check_metric`.
        ConfigError: the entry point of a scorer cannot be loaded.
    """
    for spec in concept.metrics:
        check_metric(spec, concept.select("test", spec.labels))


def shows_effect(concept: Concept, direction: Direction) -> Callable[[Example, str], bool] | None:
    """A test of whether a response to an example shows the behaviour that a direction aims at.

    None where no scorer of single responses measures the direction's effect.

    Raises:
        DataError: the scorer of the effect is unknown.
    """
    spec = concept.directions.get(direction)
    effect = None if spec is None else spec.effect
    metric = next((one for one in concept.metrics if one.metric == effect), None)
    scorer = None if metric is None else check_metric(metric, ())
    if spec is None or not isinstance(scorer, ResponseScorer):
        return None
    desired = spec.effect_better == "higher"

    def shows(example: Example, response: str) -> bool:
        category, counts = scorer.classify(example, response)
        return category not in UNCLASSIFIED and counts == desired

    return shows
