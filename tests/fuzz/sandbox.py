"""Run the real command in a process of its own: limited, without rights, its output in files."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30  # a command that takes longer hangs
MEMORY = 8 << 30  # bytes of address space; importing torch maps several
FILE_SIZE = 1 << 30
NOBODY = 65534
TAIL = 4000  # characters of the output that a report keeps


@dataclass(frozen=True)
class Finished:
    """What a command did.

    Attributes:
        exit_code: of the process; negative: the signal that ended it.
        output: what it wrote to both streams.
        hung: whether it was ended after `SECONDS`.
    """

    exit_code: int
    output: str
    hung: bool

    @property
    def crashed(self) -> bool:
        """Whether the user sees a traceback, or a signal instead of a message."""
        return "Traceback (most recent call last)" in self.output or (
            self.exit_code < 0 and not self.hung
        )


def warm_up() -> None:
    """Import what the commands use, so that a fork does not."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import retouch.cli.app
    import retouch.comparison.compare
    import retouch.comparison.tune
    import retouch.merging
    import retouch.pipeline
    import retouch.preflight.check
    import retouch.reporting.export

    torch.set_num_threads(1)
    # The rest is imported where it is used, and may lie where a user without rights cannot read.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for words in (
            ["doctor", "pocket"],
            ["concept", "list"],
            ["chat", "pocket", "--prompt", "a"],
        ):
            with contextlib.suppress(SystemExit):
                retouch.cli.app.app(words)


def run_command(words: list[str], folder: Path, seconds: int = SECONDS) -> Finished:
    """The outcome of `retouch WORDS` with `folder` as the working directory.

    The process is a fork of this one, which has called `warm_up`.
    """
    log = folder.parent / f"{folder.name}.log"
    child = os.fork()
    if child == 0:
        try:
            _enter(folder, log)
            _call(words)
        finally:
            os._exit(70)  # `_call` ends the process itself
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -1
            break
        time.sleep(0.005)
    output = log.read_text("utf-8", errors="replace")
    log.unlink()
    hung = status == -1
    return Finished(-signal.SIGKILL if hung else os.waitstatus_to_exitcode(status), output, hung)


def _enter(folder: Path, log: Path) -> None:
    """Restrict this process, and direct its streams."""
    os.setsid()
    target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.chdir(folder)
    os.environ.update(HOME=str(folder), RETOUCH_CACHE=str(folder / "cache"), COLUMNS="100")
    for name, limit in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (limit, limit))
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _call(words: list[str]) -> None:
    """Run the command line and end the process as the interpreter would."""
    import traceback

    from retouch.cli.app import app

    code = 0
    try:
        app(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def make_folder(folder: Path) -> None:
    """An empty folder that the command may write into."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    give_away(folder)


def give_away(path: Path) -> None:
    """Let the user without rights own a file or folder."""
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
