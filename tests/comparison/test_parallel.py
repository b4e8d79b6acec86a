"""Workers in processes of this machine: their exceptions, and those that die."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.any_model import for_any_model
from helpers.crashing_plan import crashing_grid
from retouch.comparison.grid import Grid, make_grid
from retouch.comparison.parallel import ProcessPool, Worker
from retouch.core.errors import ModelError, RunError
from retouch.core.types import Event


def one_point_grid(model: str = "pocket") -> Grid:
    return make_grid(model, for_any_model("pocket-safety"), "raise", ["none"], 1, [2], limit=2)


def run_points(grid: Grid, events: list[Event]) -> None:
    list(ProcessPool(grid, 1).run(grid.points(), events.append))


def test_an_unexpected_exception_in_a_worker_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, threads = one_point_grid(), torch.get_num_threads()
    monkeypatch.setattr("retouch.comparison.parallel.load", lambda name, config: 1 // 0)
    error = Worker(grid, threads).run(grid.points()[0])
    assert type(error) is RuntimeError
    with pytest.raises(
        RuntimeError, match=r"(?s)none, 2 examples, seed 0.*Traceback.*ZeroDivision"
    ):
        raise error


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised() -> None:
    with pytest.raises(ModelError, match="absent/model"):
        run_points(one_point_grid("absent/model"), [])


@pytest.mark.slow
def test_a_point_that_kills_every_worker_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.comparison.parallel.MAX_DEATHS", 2)
    grid = crashing_grid(one_point_grid(), tmp_path / "marks", kills=9)
    events: list[Event] = []
    with pytest.raises(RunError, match=r"2 times while running none, 2 .*exit code -9") as error:
        run_points(grid, events)
    assert error.value.code == "worker-killed"
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert len(events) == 2  # the resources, and the worker that was replaced


class ExitingGrid:
    """Ends the process that unpickles it."""

    model = "pocket"

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_exits_by_itself_is_not_replaced() -> None:
    grid: Any = ExitingGrid()
    with pytest.raises(RunError, match="exit code 3") as error:
        list(ProcessPool(grid, 1).run(one_point_grid().points(), lambda event: None))
    assert error.value.code == "worker-not-started"
