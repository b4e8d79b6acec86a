"""A grid that kills the workers that build its tasks, as a system without free memory does.

A module of its own, so that workers on a cluster can import it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from retouch.comparison.grid import Grid, make_grid
from retouch.core.config import DataConfig


@dataclass(frozen=True)
class CrashingGrid(Grid):
    """Kills the processes that ask for the data settings of a task.

    Attributes:
        marks: a folder with a file for each process that was killed.
        kills: the number of processes to kill.
        parent: the id of the process that is never killed.
    """

    marks: str = ""
    kills: int = 0
    parent: int = 0

    def data(self, num_examples: int) -> DataConfig:
        if os.getpid() != self.parent:
            for number in range(self.kills):
                try:
                    Path(self.marks, str(number)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().data(num_examples)


def crashing_grid(grid: Grid, marks: Path, kills: int) -> CrashingGrid:
    """The grid with `kills` crashes; each leaves a file in the new folder `marks`."""
    marks.mkdir()
    values: dict[str, Any] = {one.name: getattr(grid, one.name) for one in fields(Grid)}
    return CrashingGrid(**values, marks=str(marks), kills=kills, parent=os.getpid())


def use_crashing_grid(monkeypatch: pytest.MonkeyPatch, marks: Path, kills: int) -> None:
    """Make `compare` use a `CrashingGrid`."""

    def make_crashing_grid(*args: Any, **kwargs: Any) -> CrashingGrid:
        return crashing_grid(make_grid(*args, **kwargs), marks, kills)

    monkeypatch.setattr("retouch.comparison.compare.make_grid", make_crashing_grid)
