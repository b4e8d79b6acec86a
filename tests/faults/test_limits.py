"""A full disk, too little memory, a folder that is read only, and two processes at once."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.forked_cli import Child, ForkServer
from helpers.tiny_run import results
from retouch.core.run_dir import RunDir

NOBODY = 65534
MIB = 2**20


def error_of(child: Child, exit_code: int) -> str:
    """The one message of a command that failed."""
    assert child.wait() == exit_code, child.text
    assert "Traceback" not in child.text
    errors = [line for line in child.text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, child.text
    assert child.text.rstrip().endswith(errors[0])
    return errors[0]


def finish(server: ForkServer, whole: Any, out: Path) -> None:
    """Resume a run without limits; it ends in the same files."""
    server.run("edit", whole.options[0], "--resume", out)
    assert results(out) == results(whole.path)


# From the first file on, up to the adapter: the sizes of a run's files, and a little more.
@pytest.mark.parametrize("file_size", [2_000, 12_000, 40_000])
def test_a_disk_that_fills_up_leaves_a_run_that_continues(
    server: ForkServer, whole: Any, tmp_path: Path, file_size: int
) -> None:
    out = tmp_path / "run"
    child = server.start("edit", *whole.options, "--out", out, file_size=file_size)
    message = error_of(child, 5)
    assert str(out) in message
    assert "limit of file sizes" in message
    left = [file for file in out.rglob("*") if file.name.endswith(".new")] if out.exists() else []
    assert not left
    if (out / "config.yaml").exists():
        RunDir.open(out).events()
        finish(server, whole, out)


@pytest.mark.parametrize("more_memory", [MIB // 4, 8 * MIB, 64 * MIB])
def test_too_little_memory_is_one_message(
    server: ForkServer, whole: Any, tmp_path: Path, more_memory: int
) -> None:
    out = tmp_path / "run"
    child = server.start("edit", *whole.options, "--out", out, more_memory=more_memory)
    assert "memory is exhausted" in error_of(child, 4)
    if (out / "config.yaml").exists():
        finish(server, whole, out)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that a user cannot write into, with a path that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_reported_before_the_edit(
    server: ForkServer, read_only: Path
) -> None:
    user = NOBODY if os.geteuid() == 0 else 0  # no folder is read only for root
    out = read_only / "run"
    child = server.start("edit", "pocket", "--out", out, user=user)
    message = error_of(child, 5)
    assert str(out) in message
    assert "cannot be written" in message
    assert "cannot be written into" in message


def wait_for(child: Child, text: str) -> None:
    while text not in child.text and child.exit_code is None:
        time.sleep(0.002)


def test_a_second_process_on_a_run_learns_of_the_first(
    server: ForkServer, whole: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = server.start("edit", *whole.options, "--out", out)
    wait_for(first, " cache ")
    message = error_of(server.start("edit", whole.options[0], "--resume", out), 5)
    assert f"process {first.pid} on" in message
    message = error_of(server.start("edit", *whole.options, "--out", out), 5)
    assert "already contains a run" in message
    assert first.wait() == 0, first.text
    assert results(out) == results(whole.path)


def test_of_two_processes_that_start_at_once_one_goes_on(
    server: ForkServer, whole: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    both = [server.start("edit", *whole.options, "--out", out) for _ in range(2)]
    codes = sorted(child.wait() for child in both)
    assert codes == [0, 5], [child.text for child in both]
    loser = next(child for child in both if child.wait() == 5)
    error_of(loser, 5)
    assert results(out) == results(whole.path)
