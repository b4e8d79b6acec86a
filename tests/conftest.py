"""Settings of every test: no network, no hub, as many threads as cores, no silent skip."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import settings

HERE = ("127.0.0.1", "::1", "localhost")
NETWORK = os.environ.get("RETOUCH_TEST_NETWORK") == "1"

# Read by the libraries when they are imported, so set before any test module imports one.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not NETWORK:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
# torch takes its thread count from these; more threads than cores make small models slower. The
# worker processes of pytest-xdist share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["MKL_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]

# Hypothesis: the same examples on every run, and no deadline, which a busy machine could exceed.
settings.register_profile("retouch", deadline=None, derandomize=True)
settings.load_profile("retouch")

# Tests have a cache folder of their own; those of real models have the user's (tests/real).
USER_CACHE = os.environ.get("RETOUCH_CACHE")

# True only while a test marked `network` runs.
_open = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of real models, and skip those that this machine cannot run."""
    if "real" not in config.option.markexpr:
        real = [item for item in items if item.get_closest_marker("real")]
        items[:] = [item for item in items if item not in real]
        config.hook.pytest_deselected(items=real)
    if not NETWORK:
        shut = pytest.mark.skip(reason="reaches the network: set RETOUCH_TEST_NETWORK=1 to run it")
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(shut)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device: none here"))


@pytest.fixture(scope="session", autouse=True)
def test_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """Set the cache folder of this session; provides the user's setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETOUCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield USER_CACHE


@pytest.fixture(scope="session", autouse=True)
def shut_network() -> Iterator[None]:
    """Fail tests and fixtures that connect to a network.

    Unix sockets and the loopback interface stay open: local clusters and notebooks use them.
    """
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex
    real_create, real_lookup = socket.create_connection, socket.getaddrinfo

    def refuse(what: object) -> NoReturn:
        pytest.fail(
            f"This test tried to reach the network ({what!r}), and tests run offline: give it what "
            "it needs in memory, or mark it `network`."
        )

    def is_shut(host: object) -> bool:
        return not _open and host not in HERE

    def is_shut_to(sock: socket.socket, address: Any) -> bool:
        return sock.family != getattr(socket, "AF_UNIX", None) and is_shut(address[0])

    def connect(self: socket.socket, address: Any) -> None:
        if is_shut_to(self, address):
            refuse(address)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        if is_shut_to(self, address):
            refuse(address)
        return real_connect_ex(self, address)

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        if is_shut(address[0]):
            refuse(address)
        return real_create(address, *args, **kwargs)

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if is_shut(host):
            refuse(host)
        return real_lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect_ex)
        patch.setattr(socket, "create_connection", create_connection)
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def open_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Allow connections in a test that is marked `network`."""
    global _open
    _open = request.node.get_closest_marker("network") is not None
    yield
    _open = False
