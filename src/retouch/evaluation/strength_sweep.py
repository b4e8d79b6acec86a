"""An edit's effect and its drift: at every strength, and beside those of other edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Record
from retouch.evaluation.curve import Curve
from retouch.evaluation.evaluate import Progress, evaluate
from retouch.models.adapter_merging import scaled

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def restricted(concept: Concept, wanted: Callable[[MetricSpec], bool]) -> Concept:
    """The concept with some of its metrics alone."""
    return dataclasses.replace(concept, metrics=tuple(filter(wanted, concept.metrics)))


def effect_and_drift(concept: Concept, direction: Direction) -> Concept:
    """The concept with two metrics: the effect of the direction, and `kl_per_token`.

    Raises:
        ConfigError: the direction names no effect.
    """
    effect = concept.directions[direction].effect if direction in concept.directions else ""
    if not effect:
        raise ConfigError(
            f"The concept {concept.name} names no metric for the effect of `{direction}`.",
            f"Write `effect: METRIC` under `direction_spec.{direction}`.",
        )
    return restricted(concept, lambda spec: spec.metric in (effect, "kl_per_token"))


def effects(
    editable: EditableModel,
    concepts: Sequence[tuple[Concept, Direction]],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Each concept's effect, and the drift, of what acts on the model."""
    asked = [effect_and_drift(concept, direction) for concept, direction in concepts]
    records = evaluate(editable, asked, limit=limit, progress=progress).records
    return sorted(records, key=lambda record: record.metric == "kl_per_token")


def strength_sweep(
    editable: EditableModel,
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
        with scaled(editable, strength):
            measured.append(evaluate(editable, [asked], limit=limit, progress=tell).records)
    direction_spec = concept.directions[direction]
    curves = []
    for records in zip(*measured, strict=True):
        one = records[0]
        points = tuple(
            (strength, record.after or record.before)
            for strength, record in zip(strengths, records, strict=True)
        )
        better = direction_spec.effect_better if one.metric == direction_spec.effect else one.better
        curves.append(Curve("strength_sweep", one.metric, one.unit, better, "strength", points))
    return curves


def _named(progress: Progress | None, strength: float) -> Progress | None:
    """Progress that says at which strength."""
    if progress is None:
        return None
    return lambda what, done, total: progress(f"strength {strength:g}: {what}", done, total)
