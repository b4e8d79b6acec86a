"""One run of a method: apply it, evaluate the model, and remove it again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retouch.concepts.concept import Concept
from retouch.core.errors import DivergedError, ModelError
from retouch.core.types import Progress, Record, Split, no_progress
from retouch.evaluation.evaluate import PromptKey, evaluate
from retouch.evaluation.robustness import RobustnessReport, applicable_attacks, run_robustness
from retouch.evaluation.statistics import ExampleValues
from retouch.methods.method import Method
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


@dataclass(frozen=True)
class MethodRun:
    """The result of a run.

    Attributes:
        records: the metrics of the base and of the model with the method applied.
        values: the values of each example, by (suite, metric).
        seconds: time that the method took, without the evaluation.
    """

    records: list[Record]
    values: Mapping[tuple[str, str], ExampleValues]
    seconds: float


def check_unedited(editable: EditableModel) -> None:
    """Check that neither an adapter nor an intervention acts on a model.

    Raises:
        ModelError: one does.
    """
    if editable.edited:
        raise ModelError(
            f"{editable.name} is edited already.",
            "Compare methods on the base model.",
            code="model-edited",
        )


def run_method(
    editable: EditableModel,
    method: Method,
    settings: Any,
    task: EditTask,
    concepts: Sequence[Concept],
    *,
    split: Split,
    limit: int | None = None,
    base_responses: dict[PromptKey, str] | None = None,
    attacks: Sequence[str] = (),
    progress: Progress = no_progress,
) -> MethodRun:
    """Apply a method to the base model and evaluate it; the method is removed in any case.

    Args:
        editable: the base model.
        method: the method.
        settings: an instance of its settings.
        task: the examples, and the validator.
        concepts: the concepts whose metrics are measured.
        split: the split to measure on.
        limit: maximum number of examples per metric.
        base_responses: the base model's responses of earlier runs; new ones are added.
        attacks: robustness attacks to evaluate against, where they apply.
        progress: receives the progress of the method.

    Raises:
        RetouchError: the method cannot be applied to the concept, or its training diverged.
    """
    began = time.monotonic()
    try:
        method.apply(editable, task, settings, progress)
        seconds = time.monotonic() - began
        evaluation = evaluate(
            editable,
            concepts,
            split=split,
            limit=limit,
            known=base_responses,
            max_new_tokens=task.data.max_new_tokens,
        )
        records = list(evaluation.metrics)
        if attacks:
            records += _robustness_records(editable, task, attacks, limit)
    finally:
        adapters.detach(editable)
    for record in records:
        if record.after is not None and not math.isfinite(record.after.value):
            raise DivergedError(
                f"The metric {record.suite}/{record.metric} is not finite.",
                code="metric-not-finite",
            )
    return MethodRun(records, evaluation.values, seconds)


def _robustness_records(
    editable: EditableModel, task: EditTask, attacks: Sequence[str], limit: int | None
) -> list[Record]:
    """The metrics of those of the attacks that apply to the model with the method applied.

    Latent attacks act on the same layer for all methods.
    """
    names = [name for name in applicable_attacks(editable, task.concept) if name in attacks]
    report = run_robustness(
        editable,
        task.concept,
        names,
        limit=limit,
        seed=task.seed,
        direction=task.direction,
        layer=task.layers.adapted[0],
    )
    return [*report.records, *_curve_records(report)]


def _curve_records(report: RobustnessReport) -> Iterator[Record]:
    """One record for each point of a curve, such as `METRIC_steps_20`."""
    for curve in report.curves:
        for x, score in curve.points:
            # A curve has no base scores, so its scores are recorded as `before`.
            name = f"{curve.metric}_{curve.along}_{x:g}"
            yield Record(curve.suite, name, curve.unit, curve.better, score)
