"""Tune the settings of a method on the validation split.

`study.json` is written after every trial, and a call that finds one continues the study: Optuna's
sampler is created anew for every trial, with a seed of its own and the trials on disk, so that the
trials are the same as those of a study that was not interrupted.
"""

from __future__ import annotations

import itertools
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from retouch.comparison.grid import (
    Grid,
    check_integer,
    make_grid,
    objective_only,
    unedited_model,
)
from retouch.comparison.objective import metric_key
from retouch.comparison.result import read_saved
from retouch.comparison.runner import Runner
from retouch.comparison.study import FILE, MAX_DRIFT, Study, Trial
from retouch.comparison.tuned_settings import make_settings
from retouch.concepts.concept import Concept
from retouch.core.atomic import check_output_folder
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.lock import locked
from retouch.core.options import flatten, list_options, nest
from retouch.core.plugins import import_library
from retouch.core.progress import displayed
from retouch.core.run_dir import safe_name
from retouch.core.serialization import to_plain
from retouch.core.types import Direction, OnEvent, StageEvent
from retouch.methods import registry
from retouch.models.load import load

DIGITS = 3  # significant digits of a sampled number, so that settings files stay legible
RETRIES = 8  # further samples in place of settings that a trial has had already


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
    fixed: Mapping[str, Any] | None = None,
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
        fixed: settings of the method by dotted path that every trial has, and none searches.
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
    fixed = dict(fixed or {})
    common = flatten(tuned_method.defaults(grid.concept, direction)) | fixed
    make_settings(tuned_method, common, "`fixed`")  # raises if one of them is wrong
    space = build_search_space(tuned_method.settings, common)
    space = [dimension for dimension in space if dimension.path not in fixed]
    grid = replace(
        grid,
        seeds=(seed,),
        settings={method: nest(common)},
        settings_origin="the trial",
        measured=(objective_only(grid.concept, objective),),
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
        **({"fixed": to_plain(fixed)} if fixed else {}),
    }
    path = Path(
        output_dir or Path("runs", safe_name(f"tune-{grid.concept.name}-{direction}-{method}"))
    )
    check_output_folder(path, (FILE,))
    hint = "The same call continues after the last completed trial."
    with locked(path), displayed(on_event, hint) as events:
        grid.concept.report_notes(events)
        saved = read_saved(path / FILE, "trials", list[Trial], identity, "study-broken") or []
        study = Study(path, identity, {"trials": trials, "minutes": minutes}, max_drift, saved)
        if study.budget_spent or suggest(space, study.trials, seed) is None:
            study.write()  # its budget and maximum drift may have changed
            return study
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
    while not study.budget_spent:
        number, began = len(study.trials), time.monotonic()
        values = suggest(space, study.trials, point.seed)
        if values is None:
            on_event(StageEvent("trial", "every combination of settings has been tried"))
            return
        result = runner.run(
            point, values, lambda _, done, total: on_event(StageEvent("trial", "", done, total))
        )
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


@dataclass(frozen=True)
class Dimension:
    """One setting and its range.

    Attributes:
        path: the dotted path of the setting, such as `train.learning_rate`.
        default: the value of the first trial, which may be out of the range.
        distribution: Optuna's distribution of the values, or of the indices of `choices`, since
            Optuna does not support lists as categories.
        choices: the values of a categorical setting; empty for a range.
    """

    path: str
    default: Any
    distribution: Any
    choices: tuple[Any, ...] = ()

    def value(self, sample: Any) -> Any:
        """The setting's value for a sample of the distribution: a number has few digits."""
        if self.choices:
            return self.choices[sample]
        if isinstance(sample, int):
            return sample
        rounded = float(f"{sample:.{DIGITS}g}")
        return min(max(rounded, self.distribution.low), self.distribution.high)

    def sample(self, value: Any) -> Any:
        """The sample of a value, the reverse of `value`."""
        return self.choices.index(value) if self.choices else value


def build_search_space(
    settings: type[BaseModel], defaults: Mapping[str, Any] | None = None
) -> list[Dimension]:
    """Build the search space from the fields that `core.config.option` gives a search range.

    `defaults` by dotted path replace those of the class.

    Raises:
        ConfigError: Optuna is not installed.
    """
    distributions = import_library("optuna", "Tuning", "'retouch[compare]'").distributions
    dimensions = []
    for option in list_options(settings):
        search = option.extra.get("search")
        if not search:
            continue
        default = option.field.default
        choices = tuple(to_plain(one) for one in search.get("choices", ()))
        if choices:
            distribution = distributions.CategoricalDistribution(range(len(choices)))
        elif isinstance(default, int):
            distribution = distributions.IntDistribution(**search)
        else:
            distribution = distributions.FloatDistribution(**search)
        first = to_plain((defaults or {}).get(option.path, default))
        dimensions.append(Dimension(option.path, first, distribution, choices))
    return dimensions


def suggest(
    space: Sequence[Dimension], trials: Sequence[Trial], seed: int
) -> dict[str, Any] | None:
    """The settings of the next trial by dotted path; None when every point has been tried.

    The first trial has the defaults, the others are suggested by Optuna's multi-objective TPE
    sampler. In a categorical space every point is tried once, in random order.
    """
    number, tried = len(trials), [dict(trial.settings) for trial in trials]
    if number == 0:
        return {one.path: one.default for one in space}
    if all(one.choices for one in space):
        paths = [one.path for one in space]
        products = itertools.product(*(one.choices for one in space))
        points = (dict(zip(paths, values, strict=True)) for values in products)
        left = [point for point in points if point not in tried]
        return random.Random(f"{seed}:{number}").choice(left) if left else None
    values: dict[str, Any] = {}
    for retry in range(RETRIES):
        values = _sample(space, trials, random.Random(f"{seed}:{number}:{retry}").getrandbits(32))
        if values not in tried:
            break
    return values


def _sample(space: Sequence[Dimension], trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """One sample of Optuna's TPE sampler, given the completed trials."""
    import optuna

    distributions = {one.path: one.distribution for one in space}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
        )
        for trial in (trial for trial in trials if trial.state == "complete"):
            # Optuna refuses values out of their range, where the defaults may be.
            with suppress(ValueError):
                params = {one.path: one.sample(trial.settings[one.path]) for one in space}
                drift, effect = trial.point
                study.add_trial(
                    optuna.create_trial(
                        params=params, distributions=distributions, values=[effect, drift]
                    )
                )
        params = study.ask(distributions).params
    return {one.path: one.value(params[one.path]) for one in space}
