"""Run grid points in several workers, each with its own model; workers that die are replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import ERROR, getLogger
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import retouch
from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.result import Result
from retouch.comparison.runner import Runner
from retouch.core.errors import RetouchError, RunError
from retouch.core.types import OnEvent, StageEvent
from retouch.models.load import load

MAX_DEATHS = 3  # workers that may die running the same point
JOIN_SECONDS = 5.0  # time that a process has to end


class Worker:
    """Runs points in a process of its own, on this machine or another one."""

    def __init__(self, grid: Grid, threads: int) -> None:
        # The messages of libraries would appear once for every process.
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\b")
        getLogger("bitsandbytes").setLevel(ERROR)
        torch.set_num_threads(threads)
        self._grid = grid
        self._runner: Runner | None = None

    def version(self) -> str:
        """The version of Retouch in the process; returns once the worker is running."""
        return retouch.__version__

    def run(self, point: GridPoint) -> Result | Exception:
        """Run a point; an exception is returned: a RuntimeError if it is no RetouchError."""
        try:
            if self._runner is None:
                self._runner = Runner(load(self._grid.model, self._grid.load_config), self._grid)
            return self._runner.run(point)
        except RetouchError as error:
            return error
        except Exception:
            return RuntimeError(f"A worker failed while running {point}:\n{traceback.format_exc()}")


@dataclass(frozen=True)
class Allocation:
    """The number of workers, and the CPUs and GPUs of each."""

    workers: int
    cpus: int
    gpus: float = 0.0

    @property
    def each(self) -> str:
        """The resources of a worker, such as `2 CPU and 1 GPU`."""
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


class WorkerDiedError(Exception):
    """A worker was killed, as the system does when memory runs out, or its machine failed."""


class Pool(ABC):
    """Workers that run the points of a grid; a subclass decides where."""

    def __init__(self, grid: Grid, allocation: Allocation) -> None:
        self.grid, self.allocation = grid, allocation

    def run(self, points: Sequence[GridPoint], on_event: OnEvent) -> Iterator[Result]:
        """Run points and yield the results as they arrive.

        If a worker dies, another one runs its point again. All workers are stopped when the
        iteration ends, also by an error or Ctrl-C; points that are running then are lost.
        `on_event` receives the workers' resources, and each death of a worker.

        Raises:
            RetouchError: a worker cannot load the model or build a task.
            RunError: workers cannot start, or die repeatedly while running the same point.
            RuntimeError: any other exception in a worker, with its traceback.
        """
        message = f"loading {self.grid.model}, once for each worker: "
        message += f"{self.allocation.workers} at once, {self.allocation.each} each"
        on_event(StageEvent("workers", message))
        left = list(reversed(points))
        running: dict[Any, GridPoint | None] = {}  # None for a worker that is starting
        deaths: Counter[GridPoint | None] = Counter()
        try:
            for _ in range(min(self.allocation.workers, len(left))):
                running[self._start()] = None
            # Workers that are still starting are not awaited at the end: they may be queued for
            # longer than all points take.
            while left or any(running.values()):
                worker, answer = self._receive(list(running))
                point = running[worker]
                if isinstance(answer, WorkerDiedError):
                    deaths[point] += 1
                    on_event(StageEvent("workers", self._explain(answer, point, deaths[point])))
                    self._stop(worker)
                    del running[worker]
                    left += [point] if point else []
                    if left:
                        running[self._start()] = None
                    continue
                if left:
                    running[worker] = following = left.pop()
                    self._send(worker, following)
                else:
                    self._stop(worker)
                    del running[worker]
                if point is None:
                    deaths[None] = 0
                    if answer != retouch.__version__:
                        raise RunError(
                            f"A worker has Retouch {answer}, not {retouch.__version__}.",
                            "Install the same version on all nodes of the cluster.",
                            code="version-mismatch",
                        )
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    yield answer
        finally:
            for worker in running:
                self._stop(worker)

    def _explain(self, error: WorkerDiedError, point: GridPoint | None, deaths: int) -> str:
        """The message about a death; raises RunError if too many workers have died."""
        task = f"running {point}" if point else "starting"
        # A dead node kills several workers at once, and new ones until its death is noticed.
        limit = MAX_DEATHS if point else MAX_DEATHS * self.allocation.workers
        if deaths >= limit:
            raise RunError(
                f"Workers died {limit} times while {task} ({error}).",
                "If memory ran out, use fewer jobs. The same call continues the comparison.",
                code="worker-killed",
            )
        return f"a worker died while {task} ({error}); another one replaces it"

    @abstractmethod
    def _start(self) -> Any:
        """Start a worker, whose first answer is its version."""

    @abstractmethod
    def _send(self, worker: Any, point: GridPoint) -> None:
        """Give a worker its next point."""

    @abstractmethod
    def _receive(self, workers: list[Any]) -> tuple[Any, Any]:
        """The first of the workers with an answer, and the answer; WorkerDiedError if it died."""

    @abstractmethod
    def _stop(self, worker: Any) -> None:
        """Stop a worker and free its resources; it may be dead."""


class ProcessPool(Pool):
    """Processes on this machine, among which the CPU cores are divided."""

    def __init__(self, grid: Grid, jobs: int) -> None:
        super().__init__(grid, Allocation(jobs, max(1, (os.cpu_count() or 1) // jobs)))
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, BaseProcess] = {}

    def _start(self) -> Connection:
        parent_end, child_end = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(child_end, self.grid, self.allocation.cpus), daemon=True
        )
        process.start()
        child_end.close()  # otherwise the pipe would not end when the process dies
        self._processes[parent_end] = process
        return parent_end

    def _send(self, worker: Connection, point: GridPoint) -> None:
        with suppress(ConnectionError):  # `_receive` reports a dead process
            worker.send(point)

    def _receive(self, workers: list[Connection]) -> tuple[Connection, Any]:
        worker = next(one for one in wait(workers) if isinstance(one, Connection))
        try:
            return worker, worker.recv()
        except (EOFError, ConnectionError):
            process = self._processes[worker]
            process.join(JOIN_SECONDS)
            if (process.exitcode or 0) >= 0:  # no signal killed it
                raise RunError(
                    f"A worker process ended with exit code {process.exitcode}.",
                    "Its traceback is on the standard error. A script that uses `jobs` needs "
                    "`if __name__ == '__main__':`.",
                    code="worker-not-started",
                ) from None
            return worker, WorkerDiedError(f"exit code {process.exitcode}")

    def _stop(self, worker: Connection) -> None:
        worker.close()
        self._processes[worker].terminate()
        self._processes[worker].join(JOIN_SECONDS)


def _serve(pipe: Connection, grid: Grid, threads: int) -> None:
    """The main loop of a process: receive a point, run it, send the outcome."""
    # Ctrl-C reaches the whole process group; the parent terminates the processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(grid, threads)
    with suppress(EOFError, ConnectionError):  # the parent has closed the pipe
        pipe.send(worker.version())
        while True:
            pipe.send(worker.run(pipe.recv()))
