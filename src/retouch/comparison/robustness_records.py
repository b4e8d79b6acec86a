"""The robustness_records attacks of `retouch robustness`, put to every method: their answers as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retouch.core.types import Record
from retouch.evaluation.robustness import RobustnessReport, applicable_attacks, robustness
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


def robustness_records(
    editable: EditableModel, task: EditTask, attacks: Sequence[str], limit: int | None = None
) -> list[Record]:
    """Ask a model, with a method on it, those of the attacks that it can be asked.

    All methods are pushed at the same block. A metric along something that is turned up, such as
    steps of training, gives a record for each point: `METRIC_steps_20`.

    Raises:
        RetouchError: a question cannot be asked after all; says why.
    """
    asked = [name for name in applicable_attacks(editable, task.concept) if name in attacks]
    found = robustness(
        editable,
        task.concept,
        asked,
        limit=limit,
        seed=task.config.seed,
        direction=task.config.direction,
        layer=task.layers.adapted[0],
    )
    return [*found.records, *_along(found)]


def _along(found: RobustnessReport) -> Iterator[Record]:
    for curve in found.curves:
        for at, score in curve.points:
            name = f"{curve.metric}_{curve.along}_{at:g}"
            # There is no base beside a curve: what was measured is all there is.
            yield Record(curve.suite, name, curve.unit, curve.better, score)
