"""Workers on a Ray cluster that make points side by side; one that is lost is patch_activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import retouch
from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.parallel import Answer, Worker, unwrap
from retouch.comparison.ray_cluster import Cluster, Share, import_ray, joined
from retouch.comparison.result import Result
from retouch.core.errors import RunError

TRIES = 3  # how often a point is retain_openings whose worker is lost each time

Progress = Callable[[str], None]


def make_cells(
    grid: Grid,
    points: Sequence[GridPoint],
    cluster: Cluster,
    progress: Progress = lambda what: None,
) -> Iterator[Result]:
    """Make points on a cluster, and hand them over as they come.

    A point whose worker is lost, be it killed or with its machine, is made again by a new one. When
    the iteration ends, be it by an error or by Ctrl-C, no worker is left; points that were not
    handed over are lost.

    Args:
        grid: what is compared.
        points: those to make.
        cluster: where.
        progress: told what is reserved, and of every worker that is lost.

    Raises:
        ConfigError: there is no such cluster, or no room on it.
        RetouchError: a worker cannot load the model or set a task.
        RunError: workers cannot start, or the same point lost its worker again and again.
        RuntimeError: a worker found a fault of Retouch; with its traceback.
    """
    with joined(cluster) as share:
        progress(f"loading {grid.model}, once for each worker: {share}")
        yield from _ActorPool(grid, points, share, progress).results()


class _Actor:
    """A worker as Ray holds it."""

    def __init__(self, grid: Grid, threads: int) -> None:
        self._worker = Worker(grid, threads)

    def ready(self) -> str:
        """Answered once the cluster has found it a place: the version of Retouch there."""
        return retouch.__version__

    def make(self, point: GridPoint) -> Answer:
        return self._worker.answer(point)


class _ActorPool:
    """The workers, what each is at, and the points that are left."""

    def __init__(
        self, grid: Grid, points: Sequence[GridPoint], share: Share, progress: Progress
    ) -> None:
        # A worker that reserves no GPU leaves alone those that it may see.
        device = {} if share.gpus else {"device": "cpu"}
        self._plan = replace(grid, loading={**grid.loading, **device})
        self._left = list(reversed(points))
        self._share, self._say = share, progress
        self._ray = import_ray()
        # What is awaited: of which worker, and which point; None while it has yet to start.
        self._awaited: dict[Any, tuple[Any, GridPoint | None]] = {}
        self._lost: Counter[GridPoint | None] = Counter()

    def results(self) -> Iterator[Result]:
        try:
            for _ in range(min(self._share.workers, len(self._left))):
                self._hire()
            # Not until all have started: a worker may wait for its place longer than all work.
            while self._left or any(point for _, point in self._awaited.values()):
                first = self._ray.wait(list(self._awaited), num_returns=1)[0][0]
                actor, point = self._awaited.pop(first)
                try:
                    answer = self._ray.get(first)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor, point, error)
                    continue
                self._occupy(actor)
                if point is None:
                    self._check_version(answer)
                else:
                    yield unwrap(answer, point)
        finally:
            for actor, _ in self._awaited.values():
                self._dismiss(actor)

    def _hire(self) -> None:
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_restarts": 0}
        actor = self._ray.remote(_Actor).options(**options).remote(self._plan, self._share.cpus)
        self._awaited[actor.ready.remote()] = (actor, None)

    def _occupy(self, actor: Any) -> None:
        """Give a worker its next point, or let it go and free its place."""
        if self._left:
            point = self._left.pop()
            self._awaited[actor.make.remote(point)] = (actor, point)
        else:
            self._dismiss(actor)

    def _replace(self, actor: Any, point: GridPoint | None, error: Any) -> None:
        """Hire another worker for one that is lost, and put its point back."""
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError) or getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"A worker cannot start on the cluster: {reason}",
                "Every node needs the same Retouch and libraries as this one.",
            )
        self._dismiss(actor)
        self._lost[point] += 1
        what = "that was to start" if point is None else f"that made {point}"
        # A node that dies takes its workers along, and is given new ones until it is missed.
        tries = TRIES if point is not None else TRIES * self._share.workers
        if self._lost[point] >= tries:
            raise RunError(
                f"The worker {what} was lost {tries} times.",
                "Perhaps memory ran out: give fewer --jobs. The same command goes on.",
            )
        self._say(f"the worker {what} was lost; another takes its place")
        if point is not None:
            self._left.append(point)
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
