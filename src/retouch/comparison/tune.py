"""Tune the settings of a method on the validation split.

`study.json` is written after every trial, and a call that finds one continues the study. A trial
that was interrupted is run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retouch.comparison.grid import Grid, check_integer, make_grid, unedited_model
from retouch.comparison.objective import metric_key
from retouch.comparison.runner import Runner
from retouch.comparison.search_space import Dimension, build_search_space, suggest
from retouch.comparison.study import MAX_DRIFT, Study, Trial
from retouch.concepts.concept import Concept
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.options import flatten
from retouch.core.progress import displayed
from retouch.core.types import Direction, OnEvent, StageEvent
from retouch.methods import registry
from retouch.models.load import load


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
        model: as for `compare`.
        concept: as for `compare`.
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
        on_event: receives the events, as for `compare`.

    Returns:
        The study: its trials, and as `best_trial` the selected one.

    Raises:
        RetouchError: any of its kinds; completed trials stay on disk. An error of a method makes
            its trial a failed one, and the study continues.
    """
    check_integer("trials", trials, 1)
    for argument, value in (("minutes", minutes), ("max_drift", max_drift)):
        if not value > 0:
            raise ConfigError(f"`{argument}` must be positive, got {value}.")
    editable = unedited_model(model, tokenizer, load_config)
    grid = make_grid(
        editable or str(model),
        concept,
        direction,
        [method],
        1,
        [num_examples],
        limit=limit,
        allow_weakening=allow_weakening,
        load_config=load_config,
    )
    objective, tuned_method = grid.objective(), registry.get_method(method)
    fixed = tuned_method.defaults(grid.concept, direction)
    space = build_search_space(tuned_method.settings, flatten(fixed))
    grid = replace(
        grid,
        seeds=(seed,),
        settings={method: fixed},
        settings_origin="the trial",
        measured=(replace(grid.concept, metrics=(objective.effect, objective.drift)),),
    )
    identity = {
        **grid.model_identity,
        "method": method,
        "concept": {grid.concept.name: grid.concept.hash},
        "direction": direction,
        "num_examples": num_examples,
        "data": grid.data(num_examples).model_dump(mode="json"),
        "seed": seed,
        "limit": limit,
    }
    path = Path(output_dir or f"runs/tune-{grid.concept.name}-{direction}-{method}")
    study = Study(path, identity, {"trials": trials, "minutes": minutes}, max_drift)
    study.read()
    if study.budget_spent or suggest(space, study.trials, seed) is None:
        study.write()  # its budget and maximum drift may have changed
        return study
    with displayed(on_event, "The same call continues after the last completed trial.") as events:
        if editable is None:
            events(StageEvent("load", f"loading {model}"))
            editable = load(grid.model, grid.load_config)
        runner = Runner(editable, grid, "validation", events)
        _run_trials(study, runner, grid, space, events)
    return study


def _run_trials(
    study: Study, runner: Runner, grid: Grid, space: Sequence[Dimension], on_event: OnEvent
) -> None:
    """Run trials until the budget is spent or every point of the space has been tried."""
    (point,), objective = grid.points(), grid.objective()
    runner.build_task(point)  # before the time of the first trial begins

    def report(description: str, done: int, total: int) -> None:
        on_event(StageEvent("trial", "", done, total))

    while not study.budget_spent:
        number = len(study.trials)
        values = suggest(space, study.trials, point.seed)
        if values is None:
            on_event(StageEvent("trial", "every combination of settings has been tried"))
            return
        began = time.monotonic()
        result = runner.run(point, values, report)
        seconds = round(time.monotonic() - began, 3)
        if result.state == "failed":
            trial = Trial(number, values, None, None, seconds, "failed", result.reason)
            message = f"failed: {trial.reason}"
        else:
            scores = result.scores()
            effect = objective.gain(scores[metric_key(objective.effect)].value)
            drift = scores[metric_key(objective.drift)].value
            trial = Trial(number, values, effect, drift, seconds)
            message = f"effect {effect:.3f}, drift {drift:.4f}, {seconds:.0f} s"
        study.trials.append(trial)
        study.write()
        if study.best_trial is trial:
            message += ", the best so far"
        on_event(StageEvent("trial", f"{number + 1}/{study.budget['trials']}: {message}"))
