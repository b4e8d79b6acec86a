"""The search space of a method, and the settings of the next trial.

Optuna's sampler is created anew for every trial, with a seed of its own and the trials on disk, so
that a study that was interrupted continues with the same trials as one that was not.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from retouch.comparison.grid import import_library
from retouch.comparison.study import Trial
from retouch.core.options import list_options
from retouch.core.serialization import to_plain

DIGITS = 3  # significant digits of a sampled number, so that settings files stay legible
RETRIES = 8  # further samples in place of settings that a trial has had already


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

    Args:
        settings: the class of a method's settings; nested groups are included.
        defaults: values by dotted path that replace the defaults of the class.

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
        points = itertools.product(*(one.choices for one in space))
        named = (dict(zip(paths, point, strict=True)) for point in points)
        left = [point for point in named if point not in tried]
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
                    optuna.trial.create_trial(
                        params=params, distributions=distributions, values=[effect, drift]
                    )
                )
        params = study.ask(distributions).params
    return {one.path: one.value(params[one.path]) for one in space}
