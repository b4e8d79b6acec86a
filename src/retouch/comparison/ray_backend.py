"""Run grid points on a Ray cluster; workers that die are replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import retouch
from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.parallel import Outcome, Worker, unwrap
from retouch.comparison.ray_cluster import Allocation, Cluster, connect, import_ray
from retouch.comparison.result import Result
from retouch.core.errors import RunError
from retouch.core.types import OnEvent, StageEvent, ignore_event

MAX_DEATHS = 3  # workers that may die running the same point


def run_points(
    grid: Grid,
    points: Sequence[GridPoint],
    cluster: Cluster,
    on_event: OnEvent = ignore_event,
) -> Iterator[Result]:
    """Run points on a cluster and yield the results as they arrive.

    If a worker dies, or its node does, another one runs its point again. All workers are stopped
    when the iteration ends, also by an error or Ctrl-C; points that are running then are lost.

    Args:
        grid: the comparison.
        points: the points to run.
        cluster: the cluster.
        on_event: receives the resources that are reserved, and each death of a worker.

    Raises:
        ConfigError: there is no such cluster, or it has too few resources.
        RetouchError: a worker cannot load the model or build a task.
        RunError: workers cannot start, or die repeatedly while running the same point.
        RuntimeError: any other exception in a worker, with its traceback.
    """
    with connect(cluster) as allocation:
        on_event(StageEvent("workers", f"loading {grid.model}, once for each worker: {allocation}"))
        yield from _ActorPool(grid, points, allocation, on_event).results()


class _Actor:
    """A `Worker` as a Ray actor."""

    def __init__(self, grid: Grid, threads: int) -> None:
        self._worker = Worker(grid, threads)

    def version(self) -> str:
        """The version of Retouch on the worker's node; returns once the actor is running."""
        return retouch.__version__

    def run(self, point: GridPoint) -> Outcome:
        """Run a point."""
        return self._worker.run(point)


class _ActorPool:
    """The workers, the point that each of them runs, and the points that are left."""

    def __init__(
        self,
        grid: Grid,
        points: Sequence[GridPoint],
        allocation: Allocation,
        on_event: OnEvent,
    ) -> None:
        if not allocation.gpus:
            # A worker without a GPU must not use those that it can see.
            cpu = grid.load_config.model_copy(update={"device": "cpu"})
            grid = replace(grid, load_config=cpu)
        self._grid, self._allocation, self._on_event = grid, allocation, on_event
        self._left = list(reversed(points))
        self._ray = import_ray()
        # Pending calls: the worker and its point, None for a worker that is starting.
        self._pending: dict[Any, tuple[Any, GridPoint | None]] = {}
        self._deaths: Counter[GridPoint | None] = Counter()

    def results(self) -> Iterator[Result]:
        """Run all points."""
        try:
            for _ in range(min(self._allocation.workers, len(self._left))):
                self._start_worker()
            # Workers that are still starting are not awaited at the end: they may be queued for
            # longer than all points take.
            while self._left or any(point for _, point in self._pending.values()):
                call = self._ray.wait(list(self._pending), num_returns=1)[0][0]
                actor, point = self._pending.pop(call)
                try:
                    returned = self._ray.get(call)
                except self._ray.exceptions.RayError as error:
                    self._replace_worker(actor, point, error)
                    continue
                self._assign(actor)
                if point is None:
                    self._check_version(returned)
                else:
                    yield unwrap(returned, point)
        finally:
            for actor, _ in self._pending.values():
                self._stop(actor)

    def _start_worker(self) -> None:
        reserved = self._allocation
        options = {"num_cpus": reserved.cpus, "num_gpus": reserved.gpus, "max_restarts": 0}
        actor = self._ray.remote(_Actor).options(**options).remote(self._grid, reserved.cpus)
        self._pending[actor.version.remote()] = (actor, None)

    def _assign(self, actor: Any) -> None:
        """Give a worker its next point, or stop it and free its resources."""
        if self._left:
            point = self._left.pop()
            self._pending[actor.run.remote(point)] = (actor, point)
        else:
            self._stop(actor)

    def _replace_worker(self, actor: Any, point: GridPoint | None, error: Any) -> None:
        """Start another worker in place of one that died, and put its point back.

        Raises:
            RunError: the worker cannot start, or too many have died.
        """
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError) or getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"A worker cannot start on the cluster: {reason}",
                "Every node needs the same Retouch and libraries as this one.",
                code="worker-not-started",
            )
        self._stop(actor)
        self._deaths[point] += 1
        task = "starting" if point is None else f"running {point}"
        # A dead node kills several workers at once, and new ones until Ray notices its death.
        limit = MAX_DEATHS if point is not None else MAX_DEATHS * self._allocation.workers
        if self._deaths[point] >= limit:
            raise RunError(
                f"Workers died {limit} times while {task}.",
                "If memory ran out, use fewer jobs. The same call continues the comparison.",
                code="worker-killed",
            )
        message = f"a worker died while {task}; another one replaces it"
        self._on_event(StageEvent("workers", message))
        if point is not None:
            self._left.append(point)
        if self._left:
            self._start_worker()

    def _check_version(self, version: str) -> None:
        self._deaths[None] = 0
        if version != retouch.__version__:
            raise RunError(
                f"A node of the cluster has Retouch {version}, this one {retouch.__version__}.",
                "Install the same version on all nodes.",
                code="version-mismatch",
            )

    def _stop(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is dead already
            self._ray.kill(actor)
