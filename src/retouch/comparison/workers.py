"""Processes that make cells side by side, each with its own model."""

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

from retouch.comparison.bench import Bench
from retouch.comparison.cell import Result
from retouch.comparison.plan import Cell, Plan
from retouch.core.errors import RetouchError, RunError
from retouch.models.load import load

PATIENCE = 5.0  # seconds that a worker has to end

# A cell that was made, what the user can mend, or the traceback of a fault.
Answer = Result | RetouchError | str


def make_cells(plan: Plan, cells: Sequence[Cell], jobs: int) -> Iterator[Result]:
    """Make cells in `jobs` processes, and hand them over as they come.

    The processor's cores are shared out among the processes. When the iteration ends, be it by an
    error or by Ctrl-C, no process is left; cells that were not handed over are lost.

    Raises:
        RetouchError: a worker cannot load the model or set a task.
        RunError: a worker was killed, as the system does when memory runs out.
        RuntimeError: a worker found a fault of Retouch; with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    left = list(reversed(cells))
    processes: list[BaseProcess] = []
    workers: dict[Connection, tuple[BaseProcess, Cell]] = {}
    try:
        for _ in range(min(jobs, len(cells))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(theirs, plan, threads), daemon=True
            )
            process.start()
            processes.append(process)
            theirs.close()  # so that a worker that dies is seen as the end of the pipe
            workers[ours] = (process, left.pop())
            _send(ours, workers[ours][1])
        while workers:
            for pipe in wait(list(workers)):
                assert isinstance(pipe, Connection)
                process, cell = workers.pop(pipe)
                result = _receive(pipe, process, cell)
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


def _send(pipe: Connection, cell: Cell) -> None:
    with suppress(BrokenPipeError, ConnectionError):  # a dead worker is told of when it is read
        pipe.send(cell)


def _receive(pipe: Connection, process: BaseProcess, cell: Cell) -> Result:
    try:
        answer: Answer = pipe.recv()
    except (EOFError, ConnectionError):
        process.join(PATIENCE)
        raise RunError(
            f"The process that made {cell} was killed (exit code {process.exitcode}).",
            "Perhaps memory ran out: give fewer --jobs. The same command goes on.",
        ) from None
    return unwrap(answer, cell)


def _work(pipe: Connection, plan: Plan, threads: int) -> None:
    """What a process does: a cell for every one that it is sent."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(plan, threads)
    with suppress(EOFError, BrokenPipeError, ConnectionError):  # the parent is done, or gone
        while True:
            pipe.send(worker.answer(pipe.recv()))


class Worker:
    """One that makes cells in a process of its own, here or on another machine.

    Args:
        plan: what is compared.
        threads: processor threads that it may use.
    """

    def __init__(self, plan: Plan, threads: int) -> None:
        import torch
        from transformers.utils import logging

        # What libraries say would come once for every process; errors still come.
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\b")
        getLogger("bitsandbytes").setLevel(ERROR)
        torch.set_num_threads(threads)
        self._plan = plan
        self._bench: Bench | None = None

    def answer(self, cell: Cell) -> Answer:
        """Make a cell, on a model that the first one loads; what goes wrong is the answer, too."""
        try:
            self._bench = self._bench or Bench(
                load(self._plan.model, **self._plan.loading), self._plan
            )
            return self._bench.make(cell)
        except RetouchError as error:
            return error
        except Exception:
            return traceback.format_exc()


def unwrap(answer: Answer, cell: Cell) -> Result:
    """The result in a worker's answer.

    Raises:
        RetouchError: the worker could not load the model or set the task.
        RuntimeError: the worker found a fault of Retouch; with its traceback.
    """
    if isinstance(answer, RetouchError):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"A worker failed while making {cell}:\n{answer}")
    return answer
