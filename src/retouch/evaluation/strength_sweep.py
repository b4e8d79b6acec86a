"""The effect and the drift of an edit, as it is and as a function of its strength."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from retouch.concepts.concept import Concept, DirectionSpec, MetricSpec
from retouch.core.errors import ConfigError
from retouch.core.metrics import Metrics
from retouch.core.types import Direction, Progress, Record, no_progress
from retouch.evaluation.evaluate import evaluate
from retouch.evaluation.statistics import Curve
from retouch.models.adapter_merging import scaled

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SUITE = "strength"
DRIFT = "kl_per_token"  # the metric of the drift


def with_metrics(concept: Concept, keep: Callable[[MetricSpec], bool]) -> Concept:
    """The concept with some of its metrics alone."""
    return dataclasses.replace(concept, metrics=tuple(filter(keep, concept.metrics)))


def effect_and_drift(concept: Concept, direction: Direction) -> Concept:
    """The concept with two metrics alone: the effect of the direction, and `kl_per_token`.

    Raises:
        ConfigError: the direction names no effect.
    """
    effect = concept.directions[direction].effect if direction in concept.directions else ""
    if not effect:
        raise ConfigError(
            f"The concept {concept.name} names no `effect` for the direction `{direction}`.",
            f"Add `effect: METRIC` to `directions.{direction}` in its concept.yaml.",
            code="effect-missing",
        )
    return with_metrics(concept, lambda spec: spec.metric in (effect, DRIFT))


def effect_records(
    editable: EditableModel,
    concepts: Sequence[tuple[Concept, Direction]],
    *,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> list[Record]:
    """The effects of the concepts, by the directions of their edits, and the drift of a model.

    Raises:
        ConfigError: a direction names no effect.
    """
    chosen = [effect_and_drift(concept, direction) for concept, direction in concepts]
    metrics = evaluate(editable, chosen, limit=limit, progress=progress).metrics
    return sorted(metrics, key=lambda record: record.metric == DRIFT)


def strength_sweep(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    *,
    strengths: Sequence[float] = STRENGTHS,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> list[Curve]:
    """The effect and `kl_per_token` of an edit at several strengths; 1 is the edit as it is.

    Raises:
        ConfigError: the direction names no effect, or nothing on the model has a strength.
    """
    chosen = effect_and_drift(concept, direction)

    def measure(strength: float) -> Metrics:
        def show(description: str, done: int, total: int) -> None:
            progress(f"strength {strength:g}: {description}", done, total)

        with scaled(editable, strength):
            return evaluate(editable, [chosen], limit=limit, progress=show).metrics

    measured = list(map(measure, strengths))
    return effect_curves(concept.directions[direction], SUITE, "strength", strengths, measured)


def effect_curves(
    spec: DirectionSpec,
    suite: str,
    along: str,
    positions: Sequence[float],
    measured: Sequence[Sequence[Record]],
) -> list[Curve]:
    """The effect of a direction and the drift as functions of a variable.

    Args:
        spec: the direction.
        suite: the suite of the curves.
        along: the name of the variable.
        positions: its values, in ascending order.
        measured: for each value the records of the effect and of the drift.
    """
    curves = []
    for records in zip(*measured, strict=True):
        first, scores = records[0], [record.after or record.before for record in records]
        points = tuple(zip(map(float, positions), scores, strict=True))
        better = spec.effect_better if first.metric == spec.effect else first.better
        curves.append(Curve(suite, first.metric, first.unit, better, along, points))
    return curves
