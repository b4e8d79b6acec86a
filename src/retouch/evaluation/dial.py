"""An edit's effect and its drift: at every strength, and beside those of other edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from retouch.core.errors import ConfigError
from retouch.core.types import Concept, Direction, MetricSpec, Record
from retouch.evaluation.curve import Curve
from retouch.evaluation.runner import Progress, evaluate
from retouch.models.compose import scaled

if TYPE_CHECKING:
    from retouch.models.load import LoadedModel

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def restricted(concept: Concept, wanted: Callable[[MetricSpec], bool]) -> Concept:
    """The concept with some of its metrics alone."""
    return dataclasses.replace(concept, metrics=tuple(filter(wanted, concept.metrics)))


def effect_and_drift(concept: Concept, direction: Direction) -> Concept:
    """The concept with two metrics: the effect of the direction, and `kl_per_token`.

    Raises:
        ConfigError: the direction names no effect.
    """
    effect = concept.sides[direction].effect if direction in concept.sides else ""
    if not effect:
        raise ConfigError(
            f"The concept {concept.name} names no metric for the effect of `{direction}`.",
            f"Write `effect: METRIC` under `sides.{direction}`.",
        )
    return restricted(concept, lambda spec: spec.metric in (effect, "kl_per_token"))


def effects(
    loaded: LoadedModel,
    concepts: Sequence[tuple[Concept, Direction]],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Each concept's effect, and the drift, of what acts on the model."""
    asked = [effect_and_drift(concept, direction) for concept, direction in concepts]
    records = evaluate(loaded, asked, limit=limit, progress=progress).records
    return sorted(records, key=lambda record: record.metric == "kl_per_token")


def dial(
    loaded: LoadedModel,
    concept: Concept,
    direction: Direction,
    *,
    strengths: Sequence[float] = STRENGTHS,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Curve]:
    """The effect and `kl_per_token` as the edit's strength is turned up; 1 is the edit.

    Raises:
        ConfigError: the direction names no effect, or nothing on the model has a strength.
    """
    asked = effect_and_drift(concept, direction)
    measured: list[list[Record]] = []
    for strength in strengths:
        tell = _named(progress, strength)
        with scaled(loaded, strength):
            measured.append(evaluate(loaded, [asked], limit=limit, progress=tell).records)
    sides = concept.sides[direction]
    curves = []
    for records in zip(*measured, strict=True):
        one = records[0]
        points = tuple(
            (strength, record.after or record.before)
            for strength, record in zip(strengths, records, strict=True)
        )
        better = sides.effect_better if one.metric == sides.effect else one.better
        curves.append(Curve("dial", one.metric, one.unit, better, "strength", points))
    return curves


def _named(progress: Progress | None, strength: float) -> Progress | None:
    """Progress that says at which strength."""
    if progress is None:
        return None
    return lambda what, done, total: progress(f"strength {strength:g}: {what}", done, total)
