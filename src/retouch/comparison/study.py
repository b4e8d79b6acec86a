"""What a search has found so far, and its one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retouch.comparison.trial import Trial, choose
from retouch.core import serialization
from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError


@dataclass
class Study:
    """A search, retain_openings or done.

    Attributes:
        path: its folder.
        identity: what may not change from one sitting to the next: method, concept, rows, seed.
        budget: what it may spend: trials, and minutes of trials over all sittings.
        guard: the drift that the choice allows, nats a token.
        trials: so far.
    """

    path: Path
    identity: dict[str, Any]
    budget: dict[str, float]
    guard: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def chosen(self) -> Trial | None:
        """The trial that the rule chooses; None while none came to its end."""
        return choose(self.trials, self.guard)

    @property
    def seconds(self) -> float:
        """What the trials took."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def over(self) -> bool:
        """Whether the budget is spent; one trial is made in any case."""
        if not self.trials:
            return False
        late = self.seconds >= 60 * self.budget["minutes"]
        return late or len(self.trials) >= self.budget["trials"]

    def spent(self) -> str:
        """What the choice rests on, in words: for the head of a file of settings."""
        return (
            f"{len(self.trials)} trials in {self.seconds / 60:.1f} minutes, "
            f"{self.identity['labels']} labels, seed {self.identity['seed']}"
        )

    def write(self) -> None:
        """Write `search.json`.

        Raises:
            RunError: it cannot be written.
        """
        chosen = self.chosen
        values = {
            **self.identity,
            "budget": {**self.budget, "spent_seconds": round(self.seconds, 3)},
            "guard": self.guard,
            "trials": [
                {**asdict(trial), "settings": dict(trial.settings)} for trial in self.trials
            ],
            "chosen": chosen
            and {
                "trial": chosen.number,
                "settings": dict(chosen.settings),
                "effect": chosen.effect,
                "drift": chosen.drift,
            },
        }
        atomic_write(self.path / "search.json", serialization.to_json(values, indent=2) + "\n")

    def read(self) -> None:
        """Take up the trials of `search.json`, if there is one.

        Raises:
            RunError: it is broken, or of another search.
        """
        file = self.path / "search.json"
        if not file.exists():
            return
        try:
            values = json.loads(file.read_text("utf-8"))
            trials = [Trial(**trial) for trial in values["trials"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is broken: {error}.", "Remove it, or choose --out.") from None
        for key, value in self.identity.items():
            if values.get(key) != value:
                was = f"its {key} is {values.get(key)!r}, not {value!r}"
                raise RunError(
                    f"{file} is of another search: {was}.", "Choose another folder with --out."
                )
        self.trials = trials
