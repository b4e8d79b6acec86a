"""Run grid points in several processes, each with its own model."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from logging import ERROR, getLogger
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.result import Result
from retouch.comparison.runner import Runner
from retouch.core.errors import RetouchError, RunError
from retouch.models.load import load

JOIN_SECONDS = 5.0  # time that a process has to end

# A result, an error that the user can fix, or the traceback of any other exception.
Outcome = Result | RetouchError | str


def run_points(grid: Grid, points: Sequence[GridPoint], jobs: int) -> Iterator[Result]:
    """Run points in `jobs` processes and yield the results as they arrive.

    The CPU cores are divided among the processes. All processes are terminated when the iteration
    ends, also by an error or Ctrl-C; points that are running then are lost.

    Raises:
        RetouchError: a process cannot load the model or build a task.
        RunError: a process was killed, as the system does when memory runs out.
        RuntimeError: any other exception in a process, with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    left = list(reversed(points))
    processes: list[BaseProcess] = []
    running: dict[Connection, tuple[BaseProcess, GridPoint]] = {}
    try:
        for _ in range(min(jobs, len(points))):
            parent_end, child_end = context.Pipe()
            process: BaseProcess = context.Process(
                target=_serve, args=(child_end, grid, threads), daemon=True
            )
            process.start()
            processes.append(process)
            child_end.close()  # otherwise the pipe would not end when the process dies
            running[parent_end] = (process, left.pop())
            _send(parent_end, running[parent_end][1])
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                process, point = running.pop(pipe)
                result = _receive(pipe, process, point)
                if left:
                    running[pipe] = (process, left.pop())
                    _send(pipe, running[pipe][1])
                else:
                    pipe.close()
                yield result
    finally:
        for pipe in running:
            pipe.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(JOIN_SECONDS)


def _send(pipe: Connection, point: GridPoint) -> None:
    with suppress(BrokenPipeError, ConnectionError):  # `_receive` reports a dead process
        pipe.send(point)


def _receive(pipe: Connection, process: BaseProcess, point: GridPoint) -> Result:
    try:
        outcome: Outcome = pipe.recv()
    except (EOFError, ConnectionError):
        process.join(JOIN_SECONDS)
        raise RunError(
            f"The process that ran {point} was killed (exit code {process.exitcode}).",
            "If memory ran out, use fewer jobs. The same call continues the comparison.",
            code="worker-killed",
        ) from None
    return unwrap(outcome, point)


def _serve(pipe: Connection, grid: Grid, threads: int) -> None:
    """The main loop of a process: receive a point, run it, send the outcome."""
    # Ctrl-C reaches the whole process group; the parent terminates the processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(grid, threads)
    with suppress(EOFError, BrokenPipeError, ConnectionError):  # the parent has closed the pipe
        while True:
            pipe.send(worker.run(pipe.recv()))


class Worker:
    """Runs points in a process of its own, on this machine or another one."""

    def __init__(self, grid: Grid, threads: int) -> None:
        """Configure the process; the model is loaded for the first point.

        Args:
            grid: the comparison.
            threads: number of CPU threads.
        """
        import torch
        from transformers.utils import logging

        # The messages of libraries would appear once for every process.
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\b")
        getLogger("bitsandbytes").setLevel(ERROR)
        torch.set_num_threads(threads)
        self._grid = grid
        self._runner: Runner | None = None

    def run(self, point: GridPoint) -> Outcome:
        """Run a point; exceptions are part of the outcome."""
        try:
            if self._runner is None:
                self._runner = Runner(load(self._grid.model, self._grid.load_config), self._grid)
            return self._runner.run(point)
        except RetouchError as error:
            return error
        except Exception:
            return traceback.format_exc()


def unwrap(outcome: Outcome, point: GridPoint) -> Result:
    """The result of a worker's outcome.

    Raises:
        RetouchError: the worker could not load the model or build the task.
        RuntimeError: any other exception in the worker, with its traceback.
    """
    if isinstance(outcome, RetouchError):
        raise outcome
    if isinstance(outcome, str):
        raise RuntimeError(f"A worker failed while running {point}:\n{outcome}")
    return outcome
