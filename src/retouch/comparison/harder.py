"""The harder questions of `retouch stress`, put to every method: their answers as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retouch.core.types import Record
from retouch.editing.task import Task
from retouch.evaluation.stress import Stress, askable, stress
from retouch.models.load import LoadedModel


def harder(
    loaded: LoadedModel, task: Task, questions: Sequence[str], limit: int | None = None
) -> list[Record]:
    """Ask a model, with a method on it, those of the questions that it can be asked.

    All methods are pushed at the same block. A metric along something that is turned up, such as
    steps of training, gives a record for each point: `METRIC_steps_20`.

    Raises:
        RetouchError: a question cannot be asked after all; says why.
    """
    asked = [name for name in askable(loaded, task.concept) if name in questions]
    found = stress(
        loaded,
        task.concept,
        asked,
        limit=limit,
        seed=task.config.seed,
        direction=task.config.direction,
        layer=task.layers.adapted[0],
    )
    return [*found.records, *_along(found)]


def _along(found: Stress) -> Iterator[Record]:
    for curve in found.curves:
        for at, score in curve.points:
            name = f"{curve.metric}_{curve.along}_{at:g}"
            # There is no base beside a curve: what was measured is all there is.
            yield Record(curve.suite, name, curve.unit, curve.better, score)
