"""The Ray cluster that points are made on: how it is reached, and what a worker on it is given."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retouch.comparison.method_run import check_whole
from retouch.core.errors import ConfigError

LOCAL, AUTO = "local", "auto"
PATIENCE = 5.0  # seconds that a cluster's address has to answer

# Read by Ray when it is imported. The first keeps a cluster on this machine to the loopback
# interface, whatever its name says; the second keeps its news of the dead off our standard output:
# we tell of them ourselves.
QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|Raylet is terminated|marked dead",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Cluster:
    """What the user says of a cluster.

    Attributes:
        address: `local` starts one on this machine, `auto` joins the one that runs here or that
            RAY_ADDRESS names, HOST:PORT joins that one.
        jobs: workers at the most.
        cpus: processors of a worker; None shares them out.
        gpus: GPUs of a worker, perhaps a part of one; None goes by the device.
        device: that models are editable on, as for `models.load.load`.
    """

    address: str
    jobs: int = 1
    cpus: int | None = None
    gpus: float | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Share:
    """What is reserved: so many workers, and so much for each."""

    workers: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} at once, {self.cpus} CPU{gpus} each"


def make_cluster(
    address: str, jobs: int, cpus: int | None, gpus: float | None, device: str
) -> Cluster:
    """Check what the user says of a cluster; none is touched yet.

    Raises:
        ConfigError: a value is wrong, or Ray is not installed.
    """
    if not address or "://" in address:
        raise ConfigError(
            f"`--ray`: {address!r} will not do.",
            "Take local, auto or HOST:PORT; from outside of a cluster, send the command to it "
            "with `ray job submit`.",
        )
    if cpus is not None:
        check_whole("--cpus-per-job", cpus, 1)
    if gpus is not None and (not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(
            f"`--gpus-per-job`: {gpus} will not do.", "Give 0, a part of 1, or a whole number."
        )
    if device.startswith("cuda:"):
        raise ConfigError(
            f"`--device`: the cluster gives every worker its GPU, not {device}.",
            "Give --device cuda.",
        )
    if device == "cuda" and gpus == 0:
        raise ConfigError(
            "`--gpus-per-job`: with none there is no --device cuda.", "Leave one of them out."
        )
    import_ray()
    return Cluster(address, jobs, cpus, gpus, device)


def import_ray() -> Any:
    """The library Ray.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        if "ray" not in sys.modules:
            with _environment(QUIET):
                import ray
        else:
            import ray
    except ModuleNotFoundError:
        raise ConfigError(
            "Cells on a cluster need the library ray.", "pip install 'retouch[ray]'"
        ) from None
    return ray


@contextmanager
def joined(cluster: Cluster) -> Iterator[Share]:
    """Inside, Ray is there: a cluster of our own, one that was joined, or the program's own.

    A program that has called `ray.init` itself keeps its connection. Otherwise ours ends with the
    block; a cluster that we started ends with it, one that we joined goes on.

    Raises:
        ConfigError: there is no cluster at the address, or no room for a single worker on it.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield _share(ray, cluster)
        return
    ours = cluster.address == LOCAL
    # Ray's sockets live in it, whose paths may not be long: hence not the system's own choice.
    folder = tempfile.mkdtemp(prefix="retouch-", dir="/tmp" if os.path.isdir("/tmp") else None)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with _no_interrupt():
            _start(ray, cluster, folder) if ours else _join(ray, cluster.address)
        yield _share(ray, cluster)
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place
        shutil.rmtree(folder, ignore_errors=True)


def share_out(cluster: Cluster, nodes: Sequence[Mapping[str, float]]) -> Share:
    """How many workers there are, and what is reserved for each.

    A worker lies on one node, and gets as many processors as still let `jobs` of them, or as many
    as there is room for, run at once.

    Args:
        cluster: what the user says.
        nodes: the resources of each node, by Ray's names for them.

    Raises:
        ConfigError: no node has room for a worker.
    """
    wanted = cluster.gpus
    if wanted is None:
        some = any(node.get("GPU", 0) >= 1 for node in nodes)
        wanted = float(cluster.device == "cuda" or (cluster.device == "auto" and some))
    gpus: float = wanted

    def places(cpus: int) -> int:
        return sum(
            min(
                int(node.get("CPU", 0) // cpus),
                math.floor(node.get("GPU", 0) / gpus + 1e-9) if gpus else sys.maxsize,
            )
            for node in nodes
        )

    cpus = cluster.cpus
    if cpus is None:
        most = int(max((node.get("CPU", 0) for node in nodes), default=0))
        many = min(cluster.jobs, places(1))
        cpus = next((n for n in range(most, 0, -1) if places(n) >= many), 1)
    room = places(cpus)
    if not room:
        needed = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        raise ConfigError(
            f"`--ray`: no node of the cluster has {needed}.",
            "Give fewer --cpus-per-job or --gpus-per-job.",
        )
    return Share(min(room, cluster.jobs), cpus, gpus)


def _share(ray: Any, cluster: Cluster) -> Share:
    return share_out(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def _start(ray: Any, cluster: Cluster, folder: str) -> None:
    """Start a cluster on this machine, whose workers import what this process can import."""
    cores = max(os.cpu_count() or 1, cluster.jobs * (cluster.cpus or 1))
    with _environment({**QUIET, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}):
        ray.init(
            address=LOCAL,
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if address != AUTO:
            # Ray itself would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"`--ray`: no cluster can be joined at {address}: {lines[0]}",
            "Start one with `ray start --head`, or take --ray local; where it asks for a token, "
            "set RAY_AUTH_MODE=token.",
        ) from None


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C waits: a cluster that is started by half could not be shut down."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, these environment variables are set, but for PYTHONPATH only where they are not."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if before[name] is None or name == "PYTHONPATH":
            os.environ[name] = value
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
