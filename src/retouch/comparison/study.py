"""A study: the trials of `retouch tune`, the rule that selects one, and the study's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.objective import pareto_front
from retouch.core.atomic import atomic_write
from retouch.core.serialization import to_json, to_plain

FILE = "study.json"
MAX_DRIFT = 0.01  # nats a token
TOLERANCE = 0.01  # effects that differ by no more than this count as equal


@dataclass(frozen=True)
class Trial:
    """One evaluation of a method's settings.

    Attributes:
        number: from 0; trial 0 has the defaults.
        settings: the searched ones, by dotted path.
        effect: on the validation split, in [0, 1], higher is better; None if the trial failed.
        drift: on the validation split, nats a token; None if the trial failed.
        seconds: time of applying the method and of the evaluation.
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
    """

    path: Path
    identity: dict[str, Any]
    budget: dict[str, float]
    max_drift: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def best_trial(self) -> Trial | None:
        """The trial that `select_trial` selects; None while no trial has completed."""
        return select_trial(self.trials, self.max_drift)

    @property
    def best_settings(self) -> dict[str, Any]:
        """The settings of `best_trial`, with those that every trial has, by dotted path."""
        best = self.best_trial
        return {**self.identity.get("fixed", {}), **(best.settings if best else {})}

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
        late = self.seconds >= 60 * self.budget["minutes"]
        return bool(self.trials) and (late or len(self.trials) >= self.budget["trials"])

    def cost(self) -> str:
        """The cost of the study in words, for the comments of a settings file."""
        return (
            f"{len(self.trials)} trials in {self.seconds / 60:.1f} minutes, "
            f"{self.identity['model']}, {self.identity['num_examples']} examples, "
            f"seed {self.identity['seed']}"
        )

    def write(self) -> None:
        """Write `study.json`.

        Raises:
            RunError: it cannot be written.
        """
        values = {
            "identity": self.identity,
            "budget": {**self.budget, "spent_seconds": round(self.seconds, 3)},
            "max_drift": self.max_drift,
            "trials": to_plain(self.trials),
            "best_trial": to_plain(self.best_trial),
        }
        atomic_write(self.path / FILE, to_json(values, indent=2) + "\n")


def select_trial(trials: Sequence[Trial], max_drift: float = MAX_DRIFT) -> Trial | None:
    """Select the settings of a method, by the same rule for every method.

    The candidates are the trials within the maximum drift. Among those whose effect is within
    0.01 of the candidates' best, the trial with the lowest drift is selected, the earliest of
    equals. If the best effect within the maximum drift is less than half of the best effect of all
    trials, the method needs more drift to work, and all trials are candidates.

    Returns None if all trials failed.
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


def _completed(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]
