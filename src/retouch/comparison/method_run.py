"""One method tried once: applied, measured, taken off again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retouch.comparison.robustness_records import robustness_records
from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.config_file import resolve
from retouch.core.errors import ConfigError, DivergedError, ModelError
from retouch.core.types import Direction, Record, Split
from retouch.evaluation.evaluate import Asked, Evaluation, evaluate
from retouch.methods.method import Method, Progress
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.reporting.safety_gate import check_weakening
from retouch.task.task import EditTask

# Of the concept's tuned settings, those that decide the rows: every method is given them. What is
# the game's own is a setting of the method `retouch`.
ROW_FIELDS = ("retain", "forced", "forced_rows", "response_tokens")


@dataclass(frozen=True)
class MethodRun:
    """What came of it.

    Attributes:
        evaluation: the model with the method on it, and the base.
        robustness_records: the records of the robustness_records attacks.
        seconds: that the method took; the measurement is not in it.
    """

    evaluation: Evaluation
    robustness_records: list[Record]
    seconds: float


def task_config(
    concept: Concept,
    model: str,
    name: str,
    direction: Direction,
    labels: int,
    seed: int,
    allow_weakening: str | None = None,
    source: str | None = None,
) -> EditConfig:
    """The configuration of a task: the rows that every method gets.

    Args:
        concept: the concept itself.
        model: what the user calls the model.
        name: what the user calls the concept.
        direction: raise or lower it.
        labels: labelled rows, of source and of target each.
        seed: decides which rows.
        allow_weakening: the reason for lowering safety.
        source: training rows to move in place of the concept's, as in `EditConfig`.

    Raises:
        ConfigError: a value is wrong; names it.
        RefusedError: the direction weakens safety, and there is no reason for it.
    """
    tuned = concept.settings.get(direction, {})
    config = resolve(
        {key: tuned[key] for key in ROW_FIELDS if key in tuned},
        {"model": model, "concept": name, "direction": direction, "labels": labels, "seed": seed},
        {"allow_weakening": allow_weakening, "source": source},
        where="the options",
    )
    check_weakening(config, concept)
    return config


def check_bare(editable: EditableModel) -> None:
    """Let a model pass that nothing acts on.

    Raises:
        ModelError: it has an adapter or an intervention.
    """
    if editable.edited:
        raise ModelError(
            f"{editable.name} is edited already.", "Compare methods on the base model."
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
    known: dict[Asked, str] | None = None,
    attacks: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> MethodRun:
    """Apply a method to a bare model, measure it, and take it off, whatever happens.

    Args:
        editable: the base model.
        method: what is tried.
        settings: an instance of its settings.
        task: the rows, and the judge.
        concepts: whose metrics are measured.
        split: on which rows.
        limit: at most so many rows a metric.
        known: the base's responses, as for `evaluation.runner.evaluate`.
        attacks: the robustness_records ones to ask, as in `evaluation.robustness`.
        progress: progress of the method.

    Raises:
        RetouchError: the method cannot serve the concept or fell apart; says why.
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
            known=known,
            max_new_tokens=task.config.data.max_new_tokens,
        )
        more = robustness_records(editable, task, attacks, limit) if attacks else []
    finally:
        adapters.detach(editable)
    for record in (*evaluation.records, *more):
        if record.after is not None and not math.isfinite(record.after.value):
            raise DivergedError(f"The metric {record.suite}/{record.metric} is not finite.")
    return MethodRun(evaluation, more, seconds)


def check_whole(option: str, value: object, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        ConfigError: it is none; names the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"`{option}`: {value!r} will not do.", f"Give a whole number from {least} on."
        )
    return value
