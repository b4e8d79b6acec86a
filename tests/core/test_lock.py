"""The lock of a run: one process, also after one was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retouch.core.errors import RunError
from retouch.core.lock import NAME, locked

PROGRAM = """
import sys, time
from pathlib import Path
from retouch.core.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_an_error_with_the_first(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(RunError, match=f"process {os.getpid()} on") as error, locked(tmp_path):
            pass
        assert error.value.code == "run-locked"
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()
    with locked(tmp_path):
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"process {process.pid}"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("dear")
    (tmp_path / NAME).symlink_to(other)
    with pytest.raises(RunError), locked(tmp_path):
        pass
    assert other.read_text() == "dear"
