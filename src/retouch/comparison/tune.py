"""Tune the settings of a method on the validation split.

`study.json` is written after every trial, and a call that finds one continues the study. A trial
that was interrupted is run again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retouch.comparison.grid import (
    as_concept,
    check_direction,
    check_integer,
    data_config,
    model_identity,
)
from retouch.comparison.method_run import check_unedited, run_method
from retouch.comparison.objective import Objective, find_objective, metric_key
from retouch.comparison.result import final_score
from retouch.comparison.sampler import check_optuna, suggest
from retouch.comparison.search_space import SearchSpace, build_search_space
from retouch.comparison.study import MAX_DRIFT, Study, Trial
from retouch.comparison.tuned_settings import make_settings
from retouch.concepts.concept import Concept
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, RetouchError
from retouch.core.options import flatten
from retouch.core.progress import displayed
from retouch.core.types import Direction, OnEvent, StageEvent
from retouch.evaluation.evaluate import PromptKey
from retouch.methods import registry
from retouch.methods.method import Method
from retouch.models.editable_model import EditableModel
from retouch.models.load import as_editable, load, loaded_already
from retouch.reporting.safety_gate import check_weakening
from retouch.task.task import EditTask, build_task


def tune(
    model: Any,
    concept: Concept | str,
    direction: Direction,
    method: str,
    *,
    tokenizer: Any = None,
    num_examples: int = 128,
    trials: int = 40,
    minutes: float = 10.0,
    seed: int = 0,
    max_drift: float = MAX_DRIFT,
    limit: int | None = None,
    output_dir: Path | str | None = None,
    load_config: LoadConfig | None = None,
    allow_weakening: str | None = None,
    on_event: OnEvent | None = None,
) -> Study:
    """Search a method's settings for a large effect and little drift on the validation split.

    Args:
        model: a name, a transformers model with its `tokenizer`, or an `EditableModel`.
        concept: the name of a built-in concept, the path of a file or a pack, or a `Concept`.
        direction: `raise` or `lower`.
        method: the id of a method.
        tokenizer: the tokenizer of a transformers model.
        num_examples: labelled source examples, and as many target examples.
        trials: maximum number of trials, those of earlier calls included; the first trial has the
            defaults.
        minutes: no trial begins once all trials have taken this long, earlier calls included.
        seed: the seed of the examples, the initial weights and the trials.
        max_drift: maximum drift of the selected trial, KL to the base in nats a token.
        limit: maximum number of validation examples per metric.
        output_dir: the folder of the study, which is continued if it exists (default:
            `runs/tune-CONCEPT-DIRECTION-METHOD`).
        load_config: how a model that is given by its name is loaded.
        allow_weakening: the reason for tuning an edit that weakens safety.
        on_event: receives the events (default: progress bars, and messages to the logger
            `retouch`).

    Returns:
        The study: its trials, and as `best_trial` the selected one.

    Raises:
        RetouchError: any of its kinds; completed trials stay on disk. An error of a method makes
            its trial a failed one, and the study continues.
    """
    check_direction(direction)
    check_integer("trials", trials, 1)
    check_integer("num_examples", num_examples, 2)
    if limit is not None:
        check_integer("limit", limit, 1)
    for argument, value in (("minutes", minutes), ("max_drift", max_drift)):
        if not value > 0:
            raise ConfigError(f"`{argument}` must be positive, got {value}.")
    check_optuna()
    tuned_method, concept = registry.get_method(method), as_concept(concept)
    check_weakening(direction, allow_weakening, concept)
    objective = find_objective(concept, direction)
    data = data_config(concept, direction, num_examples)
    with displayed(on_event, "The same call continues after the last completed trial.") as events:
        editable = as_editable(model, tokenizer)
        if editable is not None and load_config is not None:
            raise loaded_already("load_config")
        load_config = load_config or LoadConfig()
        name = str(model) if editable is None else editable.name
        identity = {
            **model_identity(name, load_config, editable),
            "method": method,
            "concept": {concept.name: concept.hash},
            "direction": direction,
            "num_examples": num_examples,
            "data": data.model_dump(mode="json"),
            "seed": seed,
            "limit": limit,
        }
        path = Path(output_dir or f"runs/tune-{concept.name}-{direction}-{method}")
        study = Study(path, identity, {"trials": trials, "minutes": minutes}, max_drift)
        study.read()
        fixed = flatten(tuned_method.defaults(concept, direction))
        space = build_search_space(tuned_method.settings, fixed)
        if study.budget_spent or suggest(space, study.trials, seed) is None:
            study.write()  # its budget and maximum drift may have changed
            return study
        if editable is None:
            events(StageEvent("load", f"loading {name}"))
            editable = load(name, load_config)
        check_unedited(editable)
        task = build_task(editable, concept, direction, seed, data, on_event=events)
        runner = _TrialRunner(editable, tuned_method, task, objective, limit, fixed)
        _run_trials(study, runner, space, seed, events)
    return study


@dataclass
class _TrialRunner:
    """What all trials of a study share.

    Attributes:
        editable: the base model.
        method: the method.
        task: the examples, and the validator.
        objective: the effect and the drift.
        limit: maximum number of examples per metric.
        fixed: settings by dotted path that differ from the method's defaults.
        base_responses: the base model's responses to the validation prompts.
    """

    editable: EditableModel
    method: Method
    task: EditTask
    objective: Objective
    limit: int | None
    fixed: Mapping[str, Any]
    base_responses: dict[PromptKey, str] = field(default_factory=dict)

    def run(self, number: int, values: dict[str, Any], on_event: OnEvent) -> Trial:
        """Run a trial; an error of the method makes it a failed one."""
        effect, drift = self.objective.effect, self.objective.drift
        measured = replace(self.task.concept, metrics=(effect, drift))
        began = time.monotonic()

        def report(description: str, done: int, total: int) -> None:
            on_event(StageEvent("trial", "", done, total))

        try:
            run = run_method(
                self.editable,
                self.method,
                make_settings(self.method, {**self.fixed, **values}, f"trial {number}"),
                self.task,
                [measured],
                split="validation",
                limit=self.limit,
                base_responses=self.base_responses,
                progress=report,
            )
        except RetouchError as error:
            seconds = round(time.monotonic() - began, 3)
            return Trial(number, values, None, None, seconds, "failed", str(error))
        scores = {metric_key(record): final_score(record).value for record in run.records}
        return Trial(
            number,
            values,
            effect=self.objective.gain(scores[metric_key(effect)]),
            drift=scores[metric_key(drift)],
            seconds=round(time.monotonic() - began, 3),
        )


def _run_trials(
    study: Study, runner: _TrialRunner, space: SearchSpace, seed: int, on_event: OnEvent
) -> None:
    """Run trials until the budget is spent or every point of the space has been tried."""
    total = int(study.budget["trials"])
    while not study.budget_spent:
        values = suggest(space, study.trials, seed)
        if values is None:
            on_event(StageEvent("trial", "every combination of settings has been tried"))
            return
        trial = runner.run(len(study.trials), values, on_event)
        study.trials.append(trial)
        study.write()
        message = f"failed: {trial.reason}"
        if trial.state == "complete":
            message = f"effect {trial.effect:.3f}, drift {trial.drift:.4f}, {trial.seconds:.0f} s"
            if study.best_trial is trial:
                message += ", the best so far"
        on_event(StageEvent("trial", f"{trial.number + 1}/{total}: {message}"))
