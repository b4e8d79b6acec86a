"""Processes that make points side by side, each with its own model."""

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

PATIENCE = 5.0  # seconds that a worker has to end

# A point that was made, what the user can hint, or the traceback of a fault.
Answer = Result | RetouchError | str


def make_cells(grid: Grid, points: Sequence[GridPoint], jobs: int) -> Iterator[Result]:
    """Make points in `jobs` processes, and hand them over as they come.

    The processor's cores are shared out among the processes. When the iteration ends, be it by an
    error or by Ctrl-C, no process is left; points that were not handed over are lost.

    Raises:
        RetouchError: a worker cannot load the model or set a task.
        RunError: a worker was killed, as the system does when memory runs out.
        RuntimeError: a worker found a fault of Retouch; with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    left = list(reversed(points))
    processes: list[BaseProcess] = []
    workers: dict[Connection, tuple[BaseProcess, GridPoint]] = {}
    try:
        for _ in range(min(jobs, len(points))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(theirs, grid, threads), daemon=True
            )
            process.start()
            processes.append(process)
            theirs.close()  # so that a worker that dies is seen as the end of the pipe
            workers[ours] = (process, left.pop())
            _send(ours, workers[ours][1])
        while workers:
            for pipe in wait(list(workers)):
                assert isinstance(pipe, Connection)
                process, point = workers.pop(pipe)
                result = _receive(pipe, process, point)
                if left:
                    workers[pipe] = (process, left.pop())
                    _send(pipe, workers[pipe][1])
                else:
                    pipe.close()
                yield result
    finally:
        for pipe in workers:
            pipe.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(PATIENCE)


def _send(pipe: Connection, point: GridPoint) -> None:
    with suppress(BrokenPipeError, ConnectionError):  # a dead worker is told of when it is read
        pipe.send(point)


def _receive(pipe: Connection, process: BaseProcess, point: GridPoint) -> Result:
    try:
        answer: Answer = pipe.recv()
    except (EOFError, ConnectionError):
        process.join(PATIENCE)
        raise RunError(
            f"The process that made {point} was killed (exit code {process.exitcode}).",
            "Perhaps memory ran out: give fewer --jobs. The same command goes on.",
        ) from None
    return unwrap(answer, point)


def _work(pipe: Connection, grid: Grid, threads: int) -> None:
    """What a process does: a point for every one that it is sent."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(grid, threads)
    with suppress(EOFError, BrokenPipeError, ConnectionError):  # the parent is done, or gone
        while True:
            pipe.send(worker.answer(pipe.recv()))


class Worker:
    """One that makes points in a process of its own, here or on another machine.

    Args:
        grid: what is compared.
        threads: processor threads that it may use.
    """

    def __init__(self, grid: Grid, threads: int) -> None:
        import torch
        from transformers.utils import logging

        # What libraries progress would come once for every process; errors still come.
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\b")
        getLogger("bitsandbytes").setLevel(ERROR)
        torch.set_num_threads(threads)
        self._plan = grid
        self._bench: Runner | None = None

    def answer(self, point: GridPoint) -> Answer:
        """Make a point, on a model that the first one loads; what goes wrong is the answer, too."""
        try:
            self._bench = self._bench or Runner(
                load(self._plan.model, **self._plan.loading), self._plan
            )
            return self._bench.make(point)
        except RetouchError as error:
            return error
        except Exception:
            return traceback.format_exc()


def unwrap(answer: Answer, point: GridPoint) -> Result:
    """The result in a worker's answer.

    Raises:
        RetouchError: the worker could not load the model or set the task.
        RuntimeError: the worker found a fault of Retouch; with its traceback.
    """
    if isinstance(answer, RetouchError):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"A worker failed while making {point}:\n{answer}")
    return answer
