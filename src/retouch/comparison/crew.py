"""Workers on a Ray cluster that make cells side by side; one that is lost is replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import retouch
from retouch.comparison.cell import Result
from retouch.comparison.cluster import Cluster, Share, import_ray, joined
from retouch.comparison.plan import Cell, Plan
from retouch.comparison.workers import Answer, Worker, unwrap
from retouch.core.errors import RunError

TRIES = 3  # how often a cell is begun whose worker is lost each time

Say = Callable[[str], None]


def make_cells(
    plan: Plan, cells: Sequence[Cell], cluster: Cluster, say: Say = lambda what: None
) -> Iterator[Result]:
    """Make cells on a cluster, and hand them over as they come.

    A cell whose worker is lost, be it killed or with its machine, is made again by a new one. When
    the iteration ends, be it by an error or by Ctrl-C, no worker is left; cells that were not
    handed over are lost.

    Args:
        plan: what is compared.
        cells: those to make.
        cluster: where.
        say: told what is reserved, and of every worker that is lost.

    Raises:
        ConfigError: there is no such cluster, or no room on it.
        RetouchError: a worker cannot load the model or set a task.
        RunError: workers cannot start, or the same cell lost its worker again and again.
        RuntimeError: a worker found a fault of Retouch; with its traceback.
    """
    with joined(cluster) as share:
        say(f"loading {plan.model}, once for each worker: {share}")
        yield from _Crew(plan, cells, share, say).results()


class _Actor:
    """A worker as Ray holds it."""

    def __init__(self, plan: Plan, threads: int) -> None:
        self._worker = Worker(plan, threads)

    def ready(self) -> str:
        """Answered once the cluster has found it a place: the version of Retouch there."""
        return retouch.__version__

    def make(self, cell: Cell) -> Answer:
        return self._worker.answer(cell)


class _Crew:
    """The workers, what each is at, and the cells that are left."""

    def __init__(self, plan: Plan, cells: Sequence[Cell], share: Share, say: Say) -> None:
        # A worker that reserves no GPU leaves alone those that it may see.
        device = {} if share.gpus else {"device": "cpu"}
        self._plan = replace(plan, loading={**plan.loading, **device})
        self._left = list(reversed(cells))
        self._share, self._say = share, say
        self._ray = import_ray()
        # What is awaited: of which worker, and which cell; None while it has yet to start.
        self._awaited: dict[Any, tuple[Any, Cell | None]] = {}
        self._lost: Counter[Cell | None] = Counter()

    def results(self) -> Iterator[Result]:
        try:
            for _ in range(min(self._share.workers, len(self._left))):
                self._hire()
            # Not until all have started: a worker may wait for its place longer than all work.
            while self._left or any(cell for _, cell in self._awaited.values()):
                first = self._ray.wait(list(self._awaited), num_returns=1)[0][0]
                actor, cell = self._awaited.pop(first)
                try:
                    answer = self._ray.get(first)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor, cell, error)
                    continue
                self._occupy(actor)
                if cell is None:
                    self._check_version(answer)
                else:
                    yield unwrap(answer, cell)
        finally:
            for actor, _ in self._awaited.values():
                self._dismiss(actor)

    def _hire(self) -> None:
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_restarts": 0}
        actor = self._ray.remote(_Actor).options(**options).remote(self._plan, self._share.cpus)
        self._awaited[actor.ready.remote()] = (actor, None)

    def _occupy(self, actor: Any) -> None:
        """Give a worker its next cell, or let it go and free its place."""
        if self._left:
            cell = self._left.pop()
            self._awaited[actor.make.remote(cell)] = (actor, cell)
        else:
            self._dismiss(actor)

    def _replace(self, actor: Any, cell: Cell | None, error: Any) -> None:
        """Hire another worker for one that is lost, and put its cell back."""
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError) or getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"A worker cannot start on the cluster: {reason}",
                "Every node needs the same Retouch and libraries as this one.",
            )
        self._dismiss(actor)
        self._lost[cell] += 1
        what = "that was to start" if cell is None else f"that made {cell}"
        # A node that dies takes its workers along, and is given new ones until it is missed.
        tries = TRIES if cell is not None else TRIES * self._share.workers
        if self._lost[cell] >= tries:
            raise RunError(
                f"The worker {what} was lost {tries} times.",
                "Perhaps memory ran out: give fewer --jobs. The same command goes on.",
            )
        self._say(f"the worker {what} was lost; another takes its place")
        if cell is not None:
            self._left.append(cell)
        if self._left:
            self._hire()

    def _check_version(self, version: str) -> None:
        self._lost[None] = 0
        if version != retouch.__version__:
            raise RunError(
                f"A node of the cluster has Retouch {version}, this one {retouch.__version__}.",
                "Install the same on all.",
            )

    def _dismiss(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is gone already
            self._ray.kill(actor)
