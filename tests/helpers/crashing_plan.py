"""A grid that kills the first workers that set one of its tasks, as a system without memory does.

A module of its own, so that a worker on a cluster can import it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from retouch.comparison.grid import Grid
from retouch.core.config import EditConfig


@dataclass(frozen=True)
class Deadly(Grid):
    """Kills as many workers as it is told; the process that made it is spared."""

    marks: str = ""
    kills: int = 0
    spared: int = 0

    def config(self, labels: int, seed: int) -> EditConfig:
        if os.getpid() != self.spared:
            for number in range(self.kills):
                try:
                    Path(self.marks, str(number)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().config(labels, seed)


def deadly(grid: Grid, marks: Path, kills: int) -> Deadly:
    """The grid, but deadly so many times; each leaves a mark in the folder."""
    marks.mkdir()
    values: dict[str, Any] = {one.name: getattr(grid, one.name) for one in fields(Grid)}
    return Deadly(**values, marks=str(marks), kills=kills, spared=os.getpid())
