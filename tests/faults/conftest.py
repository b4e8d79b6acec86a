"""Processes of the command line, and one whole edit that the others are compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.forked_cli import ForkServer
from helpers.tiny_run import write_inputs


@dataclass(frozen=True)
class Whole:
    """An edit that nothing interrupted.

    Attributes:
        options: of the edit.
        path: of the run.
        seconds: that it took.
    """

    options: list[str]
    path: Path
    seconds: float


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("outputs")) as started:
        yield started


@pytest.fixture(scope="session")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    options = write_inputs(folder)
    began = time.monotonic()
    server.run("edit", *options, "--out", folder / "run")
    return Whole(options, folder / "run", time.monotonic() - began)
