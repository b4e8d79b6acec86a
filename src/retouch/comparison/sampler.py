"""Which settings a search tries next.

What Optuna is told are the trials on disk, and its sampler is seeded anew for every trial. So a
search that was cut off goes on with the same trials as one that was not.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from retouch.comparison.search_space import Dimension, SearchSpace
from retouch.comparison.trial import Trial
from retouch.core.errors import ConfigError

RETRIES = 8  # how often another draw is asked for in place of one that was tried already


def check_optuna() -> None:
    """Whether Optuna is there.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "The search for settings needs the library optuna.", "pip install 'retouch[compare]'"
        ) from None


def suggest(space: SearchSpace, trials: Sequence[Trial], seed: int) -> dict[str, Any] | None:
    """The settings of the next trial; None when there is nothing left to try.

    First the defaults, then what Optuna's multi-objective TPE proposes; where all settings are
    choices, every point of the space in a random order, once.

    Raises:
        ConfigError: Optuna is not installed.
    """
    number = len(trials)
    if number == 0:
        return space.defaults()
    tried = [dict(trial.settings) for trial in trials]
    size = space.size()
    if size is not None:
        left = [point for point in space.points() if point not in tried]
        return random.Random(f"{seed}:{number}").choice(left) if left else None
    drawn: dict[str, Any] = {}
    for retry in range(RETRIES):
        drawn = _ask(space, trials, random.Random(f"{seed}:{number}:{retry}").getrandbits(32))
        if drawn not in tried:
            break
    return drawn


def _ask(space: SearchSpace, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    check_optuna()
    import optuna

    ranges = {one.name: _distribution(one) for one in space.dimensions}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
        )
        for trial in trials:
            # The defaults may lie outside of the ranges; failed trials teach the sampler nothing.
            if trial.effect is None or trial.drift is None or not space.holds(trial.settings):
                continue
            study.add_trial(
                optuna.trial.create_trial(
                    params=_params(space, trial.settings),
                    distributions=ranges,
                    values=[trial.effect, trial.drift],
                )
            )
        params = study.ask(ranges).params
    return {
        one.name: one.choices[params[one.name]] if one.choices else one.rounded(params[one.name])
        for one in space.dimensions
    }


def _distribution(one: Dimension) -> Any:
    from optuna import distributions

    if one.choices:
        # By their index: Optuna takes no lists.
        return distributions.CategoricalDistribution(range(len(one.choices)))
    if one.whole:
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return distributions.FloatDistribution(one.low, one.high, log=one.log)


def _params(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        one.name: one.choices.index(values[one.name]) if one.choices else values[one.name]
        for one in space.dimensions
    }
