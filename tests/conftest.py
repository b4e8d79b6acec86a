"""What holds for every test: no network, no hub, two threads, and no silent skip."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import settings

NETWORK = os.environ.get("RETOUCH_TEST_NETWORK") == "1"

# Read by the libraries when they are imported, so set before any test module imports one.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not NETWORK:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
# torch takes its thread count from these; more threads than cores make small models slower.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

# The same examples on every run, and no deadline that a busy machine could miss.
settings.register_profile("retouch", deadline=None, derandomize=True)
settings.load_profile("retouch")

# True only while a test marked `network` runs.
_open = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
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
def shut_network() -> Iterator[None]:
    """Let no test, and no fixture of any scope, reach a network; Unix sockets stay open."""
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex
    real_create, real_lookup = socket.create_connection, socket.getaddrinfo

    def refuse(what: object) -> NoReturn:
        pytest.fail(
            f"This test tried to reach the network ({what!r}), and tests run offline: give it what "
            "it needs in memory, or mark it `network`."
        )

    def is_shut(sock: socket.socket) -> bool:
        return not _open and sock.family != getattr(socket, "AF_UNIX", None)

    def connect(self: socket.socket, address: Any) -> None:
        if is_shut(self):
            refuse(address)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        if is_shut(self):
            refuse(address)
        return real_connect_ex(self, address)

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        if not _open:
            refuse(address)
        return real_create(address, *args, **kwargs)

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _open:
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
    """Open the network for one test marked `network`, and shut it again after."""
    global _open
    _open = request.node.get_closest_marker("network") is not None
    yield
    _open = False
