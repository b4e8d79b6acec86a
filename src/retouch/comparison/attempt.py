"""One method tried once: applied, measured, taken off again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retouch.comparison.harder import harder
from retouch.core.config import EditConfig, resolve
from retouch.core.errors import ConfigError, DivergedError, ModelError
from retouch.core.types import Concept, Direction, Record, Split
from retouch.delivery.gate import check_weakening
from retouch.editing.task import Task
from retouch.evaluation.runner import Asked, Evaluation, evaluate
from retouch.methods.method import Method, Say
from retouch.models import adapters
from retouch.models.load import LoadedModel

# Of the concept's tuned settings, those that decide the rows: every method is given them. What is
# the game's own is a setting of the method `retouch`.
ROW_FIELDS = ("retain", "forced", "forced_rows", "reply_tokens")


@dataclass(frozen=True)
class Attempt:
    """What came of it.

    Attributes:
        evaluation: the model with the method on it, and the base.
        harder: the records of the harder questions.
        seconds: that the method took; the measurement is not in it.
    """

    evaluation: Evaluation
    harder: list[Record]
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


def check_bare(loaded: LoadedModel) -> None:
    """Let a model pass that nothing acts on.

    Raises:
        ModelError: it has an adapter or an intervention.
    """
    if loaded.edited:
        raise ModelError(f"{loaded.name} is edited already.", "Compare methods on the base model.")


def attempt(
    loaded: LoadedModel,
    method: Method,
    settings: Any,
    task: Task,
    concepts: Sequence[Concept],
    *,
    split: Split,
    limit: int | None = None,
    known: dict[Asked, str] | None = None,
    questions: Sequence[str] = (),
    say: Say = lambda what, done, total: None,
) -> Attempt:
    """Apply a method to a bare model, measure it, and take it off, whatever happens.

    Args:
        loaded: the base model.
        method: what is tried.
        settings: an instance of its settings.
        task: the rows, and the judge.
        concepts: whose metrics are measured.
        split: on which rows.
        limit: at most so many rows a metric.
        known: the base's replies, as for `evaluation.runner.evaluate`.
        questions: the harder ones to ask, as in `evaluation.stress`.
        say: progress of the method.

    Raises:
        RetouchError: the method cannot serve the concept or fell apart; says why.
    """
    began = time.monotonic()
    try:
        method.apply(loaded, task, settings, say)
        seconds = time.monotonic() - began
        evaluation = evaluate(
            loaded,
            concepts,
            split=split,
            limit=limit,
            known=known,
            max_new_tokens=task.config.reply_tokens,
        )
        more = harder(loaded, task, questions, limit) if questions else []
    finally:
        adapters.detach(loaded)
    for record in (*evaluation.records, *more):
        if record.after is not None and not math.isfinite(record.after.value):
            raise DivergedError(f"The metric {record.suite}/{record.metric} is not finite.")
    return Attempt(evaluation, more, seconds)


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
