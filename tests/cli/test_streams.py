"""Output to pipes, terminals, files and encodings that cannot take it: a message, no traceback."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from helpers.command_line import call, error_of
from retouch.cli import demo, output
from retouch.cli.app import app
from retouch.cli.progress import EditProgress
from retouch.core.types import RoundEvent, StageEvent

MAIN = [sys.executable, "-c", "from retouch.__main__ import main; main()"]
READY = "print('ready', flush=True); from retouch.__main__ import main; main()"


def run(*arguments: str, stdout: Any = subprocess.PIPE, **env: str) -> Any:
    return subprocess.run(
        [*MAIN, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
        check=False,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("concept", "list")])
def test_a_closed_pipe_ends_a_command_without_a_message(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [("concept", "list"), ("concept", "show", "safety")])
def test_an_output_on_a_full_disk_is_one_message(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 5
    assert done.stderr.decode() == (
        "Error: The output cannot be written: No space left on device.\n"
    )


def test_a_closed_output_is_no_error() -> None:
    words = " ".join(f"'{one}'" for one in [*MAIN, "concept", "list"])
    done = subprocess.run(["sh", "-c", f"{words} >&-"], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_encoding_without_a_character_shows_a_question_mark() -> None:
    done = run("concept", "show", "gender-bias", PYTHONIOENCODING="ascii", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    plain = run("concept", "show", "gender-bias", PYTHONIOENCODING="utf-8", COLUMNS="100")
    assert not plain.stdout.isascii()


def test_json_has_escapes_for_what_an_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"text": "Hö 漢字 👍🏽 \u2028"}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding, errors="replace")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            output.write_json(value, as_json=True)
            output.echo_json(value)
            stream.flush()
        first, second = raw.getvalue().decode(encoding).rsplit("\n", 2)[:2]
        assert json.loads(first) == json.loads(second) == value


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("env", "refused"),
    [
        ({"TERM": "dumb"}, "\x1b"),
        ({"NO_COLOR": "1", "TERM": "xterm-256color"}, r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;)"),
    ],
)
def test_a_terminal_without_colours_gets_none(
    env: dict[str, str], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with EditProgress(output.console()) as progress:
        progress(StageEvent("load", "loading", 1, 2))
        progress(RoundEvent(1, 2, {}, 0.5, 0.1, 0.01, True, 1.0))
    output.console().print(output.plain(("head",), [("cell",)]))
    output.print_next_steps(Path("run"), ("retouch chat", "chat"))
    text = stream.getvalue()
    assert "loading" in text
    assert "retouch chat" in text
    assert not re.search(refused, text)


def no_memory_in_python() -> None:
    raise MemoryError


def no_memory_in_torch() -> None:
    torch.empty(1 << 55)


def no_memory_in_the_system() -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("fail", [no_memory_in_python, no_memory_in_torch, no_memory_in_the_system])
def test_exhausted_memory_is_one_message(fail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "move_aside", lambda path: fail())
    message = error_of(call("demo"), 4)
    assert "memory is exhausted" in message
    assert message.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(demo, "move_aside", fail)
    assert isinstance(CliRunner().invoke(app, ["demo"]).exception, RuntimeError)


LOST = """
import os, signal, sys
from retouch.core.interrupts import note_interrupts
note_interrupts()
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:  # as a library does
    print("lost", flush=True)
from retouch.__main__ import main
main()
"""


def test_ctrl_c_that_a_library_catches_ends_the_command(tmp_path: Path) -> None:
    call = [sys.executable, "-c", LOST, "edit", "pocket", "--out", str(tmp_path / "run")]
    finished = subprocess.run(call, capture_output=True, text=True, check=False)
    assert finished.stdout == "lost\n"
    assert finished.returncode == 130
    assert "Interrupted" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run" / "adapter").exists()


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", READY, "edit", "pocket", "--out", str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 2.0))
            process.send_signal(signal.SIGINT)
            message = process.stderr.read()
        assert process.returncode == 130, message
        assert "Traceback" not in message
        assert "Interrupted" in message
        assert message.count("\n") == 1, message
