"""A study: the trials of `retouch tune`, the rule that selects one, and the study's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.objective import pareto_front
from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError
from retouch.core.serialization import from_plain, to_json, to_plain

MAX_DRIFT = 0.01  # nats a token
TOLERANCE = 0.01  # effects that differ by no more than this count as equal


@dataclass(frozen=True)
class Trial:
    """One evaluation of a method's settings.

    Attributes:
        number: from 0; trial 0 has the defaults.
        settings: the searched settings by dotted path.
        effect: on the validation split, in [0, 1], higher is better; None if the trial failed.
        drift: on the validation split, nats a token; None if the trial failed.
        seconds: time of applying the method and of the evaluation.
        state: whether the trial completed.
        reason: why it failed.
    """

    number: int
    settings: Mapping[str, Any]
    effect: float | None
    drift: float | None
    seconds: float
    state: Literal["complete", "failed"] = "complete"
    reason: str = ""

    @property
    def point(self) -> tuple[float, float]:
        """Drift and effect of a completed trial."""
        assert self.effect is not None
        assert self.drift is not None
        return self.drift, self.effect


@dataclass
class Study:
    """The search for the settings of a method; finished, or to be continued.

    Attributes:
        path: its folder.
        identity: everything that decides the result of a trial: model, method, concept, data, seed.
        budget: the maximum number of `trials`, and of `minutes` that all trials may take.
        max_drift: maximum drift of the selected trial, nats a token.
        trials: the trials so far.
    """

    path: Path
    identity: dict[str, Any]
    budget: dict[str, float]
    max_drift: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The file that holds the whole study."""
        return self.path / "study.json"

    @property
    def best_trial(self) -> Trial | None:
        """The trial that `select_trial` selects; None while no trial has completed."""
        return select_trial(self.trials, self.max_drift)

    @property
    def pareto_front(self) -> list[Trial]:
        """The completed trials on the Pareto front, in the order of their drift."""
        return pareto_front(_completed(self.trials), lambda trial: trial.point)

    @property
    def seconds(self) -> float:
        """The time that all trials took."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def budget_spent(self) -> bool:
        """Whether no further trial may begin; a study has one trial at least."""
        if not self.trials:
            return False
        late = self.seconds >= 60 * self.budget["minutes"]
        return late or len(self.trials) >= self.budget["trials"]

    def cost(self) -> str:
        """The cost of the study in words, for the comments of a settings file."""
        return (
            f"{len(self.trials)} trials in {self.seconds / 60:.1f} minutes, "
            f"{self.identity['num_examples']} examples, seed {self.identity['seed']}"
        )

    def write(self) -> None:
        """Write the study's file.

        Raises:
            RunError: it cannot be written.
        """
        best = self.best_trial
        values = {
            "identity": self.identity,
            "budget": {**self.budget, "spent_seconds": round(self.seconds, 3)},
            "max_drift": self.max_drift,
            "trials": [to_plain(trial) for trial in self.trials],
            "best_trial": None if best is None else to_plain(best),
        }
        atomic_write(self.file, to_json(values, indent=2) + "\n")

    def read(self) -> None:
        """Read the trials of the study's file, if it exists.

        Raises:
            RunError: the file is broken, or is of another study.
        """
        if not self.file.exists():
            return
        try:
            values = json.loads(self.file.read_text("utf-8"))
            trials = [from_plain(Trial, trial) for trial in values["trials"]]
            identity = values["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.file} is broken: {error}.",
                "Remove it, or set another `output_dir`.",
                code="study-broken",
            ) from None
        check_identity(self.file, identity, self.identity)
        self.trials = trials


def select_trial(trials: Sequence[Trial], max_drift: float = MAX_DRIFT) -> Trial | None:
    """Select the settings of a method, by the same rule for every method.

    The candidates are the trials within the maximum drift. Among those whose effect is within
    0.01 of the candidates' best, the trial with the lowest drift is selected, the earliest of
    equals. If the best effect within the maximum drift is less than half of the best effect of all
    trials, the method needs more drift to work, and all trials are candidates.

    Args:
        trials: the trials of a study.
        max_drift: nats a token.

    Returns:
        The selected trial; None if all trials failed.
    """
    completed = _completed(trials)
    if not completed:
        return None
    best = max(trial.point[1] for trial in completed)
    within = [trial for trial in completed if trial.point[0] <= max_drift]
    works = any(trial.point[1] >= best / 2 for trial in within)
    candidates = within if works else completed
    best = max(trial.point[1] for trial in candidates)
    # The last term is for rounding: in floating point, 1.0 - 0.01 exceeds 0.99.
    close = [trial for trial in candidates if trial.point[1] >= best - TOLERANCE - 1e-9]
    return min(close, key=lambda trial: trial.point[0])


def check_identity(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that a file belongs to this study or comparison.

    Raises:
        RunError: they differ; names the first difference.
    """
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise RunError(
                f"{file} was made with other settings: `{key}` is {found.get(key)!r} there and "
                f"{expected.get(key)!r} here.",
                "Set another `output_dir`.",
                code="identity-mismatch",
            )


def _completed(trials: Sequence[Trial]) -> list[Trial]:
    return [one for one in trials if one.effect is not None and one.drift is not None]
