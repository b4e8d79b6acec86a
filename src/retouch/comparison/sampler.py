"""Suggest the settings of the next trial.

Optuna's sampler is created anew for every trial, with a seed of its own and the trials on disk, so
that a study that was interrupted continues with the same trials as one that was not.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from retouch.comparison.search_space import Dimension, SearchSpace
from retouch.comparison.study import Trial
from retouch.core.errors import ConfigError

RETRIES = 8  # further samples in place of settings that a trial has had already


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "Tuning needs the library optuna.",
            "pip install 'retouch[compare]'",
            code="library-missing",
        ) from None


def suggest(space: SearchSpace, trials: Sequence[Trial], seed: int) -> dict[str, Any] | None:
    """The settings of the next trial by dotted path; None when every point has been tried.

    The first trial has the defaults, the others are suggested by Optuna's multi-objective TPE
    sampler. In a categorical space every point is tried once, in random order.

    Raises:
        ConfigError: Optuna is not installed.
    """
    number = len(trials)
    if number == 0:
        return space.defaults()
    tried = [dict(trial.settings) for trial in trials]
    if space.categorical:
        left = [point for point in space.points() if point not in tried]
        return random.Random(f"{seed}:{number}").choice(left) if left else None
    values: dict[str, Any] = {}
    for retry in range(RETRIES):
        values = _sample(space, trials, random.Random(f"{seed}:{number}:{retry}").getrandbits(32))
        if values not in tried:
            break
    return values


def _sample(space: SearchSpace, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """One sample of Optuna's TPE sampler, given the completed trials."""
    check_optuna()
    import optuna

    distributions = {one.path: _distribution(one) for one in space.dimensions}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
        )
        for trial in trials:
            # Optuna refuses values outside of the ranges, where the defaults may be.
            if trial.state == "failed" or not space.contains(trial.settings):
                continue
            drift, effect = trial.point
            study.add_trial(
                optuna.trial.create_trial(
                    params=_params(space, trial.settings),
                    distributions=distributions,
                    values=[effect, drift],
                )
            )
        params = study.ask(distributions).params
    return {
        one.path: one.choices[params[one.path]] if one.choices else one.rounded(params[one.path])
        for one in space.dimensions
    }


def _distribution(one: Dimension) -> Any:
    from optuna import distributions

    if one.choices:
        # By index, since Optuna does not support lists as categories.
        return distributions.CategoricalDistribution(range(len(one.choices)))
    if one.integer:
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return distributions.FloatDistribution(one.low, one.high, log=one.log)


def _params(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        one.path: one.choices.index(values[one.path]) if one.choices else values[one.path]
        for one in space.dimensions
    }
