"""Run grid points on a Ray cluster: the connection, the resources of the workers, and the pool."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from retouch.comparison.grid import Grid, GridPoint, check_integer
from retouch.comparison.parallel import Allocation, Pool, Worker, WorkerDiedError
from retouch.core.errors import ConfigError, RunError
from retouch.core.plugins import import_library

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0  # time that a cluster's address has to answer

# Ray reads these when it is imported. The first restricts a cluster on this machine to the loopback
# interface; the second keeps Ray's messages about dead workers, which the pool reports, off stdout.
RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|Raylet is terminated|marked dead",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Cluster:
    """The options of a cluster, which are checked without a connection to it.

    Attributes:
        address: `local` starts a cluster on this machine, `auto` connects to the one that runs here
            or that RAY_ADDRESS names, HOST:PORT connects to that one.
        jobs: maximum number of workers.
        cpus: CPUs per worker; None divides those of the cluster.
        gpus: GPUs per worker, may be a fraction; None decides by the device.
    """

    address: str
    jobs: int = 1
    cpus: int | None = None
    gpus: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.address or "://" in self.address:
            raise ConfigError(
                f"`ray` must be `local`, `auto` or HOST:PORT, got {self.address!r}.",
                "To use a cluster from outside of it, submit the command with `ray job submit`.",
            )
        if self.cpus is not None:
            check_integer("cpus_per_job", self.cpus, 1)
        gpus = self.gpus or 0
        if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
            raise ConfigError(
                f"`gpus_per_job` must be 0, a fraction of 1, or an integer, got {gpus}."
            )
        if self.device.startswith("cuda:"):
            raise ConfigError(
                f"`device` is {self.device}, but the cluster assigns every worker its GPU.",
                "Set the device to `cuda`.",
            )
        if self.device == "cuda" and self.gpus == 0:
            raise ConfigError(
                "`gpus_per_job` is 0, and the device `cuda` needs a GPU.",
                "Leave out one of them.",
                code="options-exclusive",
            )


def import_ray() -> Any:
    """Import the library Ray.

    Raises:
        ConfigError: it is not installed.
    """
    with _environment():
        return import_library("ray", "A comparison on a cluster", "'retouch[ray]'")


class RayPool(Pool):
    """Workers on a cluster that this process is connected to."""

    def __init__(self, grid: Grid, allocation: Allocation) -> None:
        if not allocation.gpus:
            # A worker without a GPU must not use those that it can see.
            cpu = grid.load_config.model_copy(update={"device": "cpu"})
            grid = replace(grid, load_config=cpu)
        super().__init__(grid, allocation)
        self._ray = import_ray()
        self._calls: dict[Any, Any] = {}  # the pending call of each worker

    def _start(self) -> Any:
        cpus, gpus = self.allocation.cpus, self.allocation.gpus
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        actor = self._ray.remote(Worker).options(**options).remote(self.grid, cpus)
        self._calls[actor] = actor.version.remote()
        return actor

    def _send(self, worker: Any, point: GridPoint) -> None:
        self._calls[worker] = worker.run.remote(point)

    def _receive(self, workers: list[Any]) -> tuple[Any, Any]:
        by_call = {self._calls[worker]: worker for worker in workers}
        (call,), _ = self._ray.wait(list(by_call), num_returns=1)
        errors = self._ray.exceptions
        try:
            return by_call[call], self._ray.get(call)
        except errors.RayError as error:
            if isinstance(error, errors.RayTaskError) or getattr(error, "actor_init_failed", False):
                raise RunError(
                    f"A worker cannot start on the cluster: {str(error).strip().splitlines()[-1]}",
                    "Every node needs the same Retouch and libraries as this one.",
                    code="worker-not-started",
                ) from None
            return by_call[call], WorkerDiedError(type(error).__name__)

    def _stop(self, worker: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is dead already
            self._ray.kill(worker)


@contextmanager
def connect(cluster: Cluster) -> Iterator[Allocation]:
    """Connect to a cluster inside the context, and allocate its resources.

    A program that has called `ray.init` itself keeps its connection. Otherwise the connection ends
    with the context, and so does a cluster that was started for it.

    Raises:
        ConfigError: there is no cluster at the address, or its resources do not suffice for one
            worker.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield allocate(cluster, _nodes(ray))
        return
    # Not the system's temporary folder: Ray puts sockets there, and their paths must be short.
    folder = tempfile.mkdtemp(prefix="retouch-", dir="/tmp" if os.path.isdir("/tmp") else None)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        with _interrupts_blocked():
            if cluster.address == LOCAL:
                _start(ray, cluster, folder)
            else:
                _join(ray, cluster.address)
        yield allocate(cluster, _nodes(ray))
    finally:
        ray.shutdown()
        if is_main:
            signal.signal(signal.SIGTERM, handler)  # Ray has installed its own
        shutil.rmtree(folder, ignore_errors=True)


def allocate(cluster: Cluster, nodes: Sequence[Mapping[str, float]]) -> Allocation:
    """Decide how many workers run at once, and what is reserved for each.

    A worker runs on one node. Without `cpus`, it gets as many as still allow the maximum number of
    workers to run at once. `nodes` are the resources of each node, by Ray's names for them.

    Raises:
        ConfigError: no node has the resources for a worker.
    """
    gpus = cluster.gpus
    if gpus is None:
        any_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus = float(cluster.device == "cuda" or (cluster.device == "auto" and any_gpu))

    def capacity(cpus: int) -> int:
        by_cpu = [int(node.get("CPU", 0) // cpus) for node in nodes]
        if not gpus:
            return sum(by_cpu)
        # The added term is for rounding: ten workers with 0.1 GPU each fit on one GPU.
        by_gpu = [math.floor(node.get("GPU", 0) / gpus + 1e-9) for node in nodes]
        return sum(map(min, by_cpu, by_gpu))

    cpus = cluster.cpus
    if cpus is None:
        most = int(max((node.get("CPU", 0) for node in nodes), default=0))
        workers = min(cluster.jobs, capacity(1))
        cpus = next((n for n in range(most, 0, -1) if capacity(n) >= workers), 1)
    workers = min(capacity(cpus), cluster.jobs)
    if not workers:
        needed = Allocation(1, cpus, gpus).each
        raise ConfigError(
            f"No node of the cluster has the {needed} that a worker needs.",
            "Lower `cpus_per_job` or `gpus_per_job`.",
            code="resources-missing",
        )
    return Allocation(workers, cpus, gpus)


def _nodes(ray: Any) -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start(ray: Any, cluster: Cluster, folder: str) -> None:
    """Start a cluster on this machine; its workers import from the same paths as this process."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with _environment(PYTHONPATH=paths):
        ray.init(
            address=LOCAL,
            num_cpus=max(os.cpu_count() or 1, cluster.jobs * (cluster.cpus or 1)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster that is running; raises ConfigError if there is none."""
    host, _, port = address.rpartition(":")
    try:
        if address != AUTO:
            # Checked first, since Ray would retry for minutes.
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"`ray`: there is no cluster at {address}: {lines[0]}",
            "Start one with `ray start --head`, or use `local`. If the cluster requires a token, "
            "set RAY_AUTH_MODE=token.",
            code="cluster-missing",
        ) from None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C to the end of the context: a partly started cluster cannot be shut down."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables inside the context, and those for Ray that are unset."""
    changed = {k: v for k, v in RAY_ENVIRONMENT.items() if k not in os.environ} | values
    before = {name: os.environ[name] for name in changed if name in os.environ}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)
        os.environ.update(before)
