"""Run the real command in a process of its own: limited, and without rights."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.forked_cli import ForkServer

SECONDS = 30  # a command that takes longer hangs
MEMORY = 4 << 30  # bytes of address space beyond that of the libraries
FILE_SIZE = 1 << 30
UNPRIVILEGED = 65534  # the id of the user without rights
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


def start_server(folder: Path) -> ForkServer:
    """The process that commands are forked from, after it has run some: they import the rest.

    Some libraries lie where a user without rights cannot read.
    """
    server = ForkServer(folder, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", COLUMNS="100")
    server.call({"warm_up": [["doctor", "pocket"], ["chat", "pocket", "--prompt", "a"]]})
    return server


def run_command(server: ForkServer, words: list[str], folder: Path) -> Finished:
    """The outcome of `retouch WORDS` with `folder` as the working directory."""
    user = UNPRIVILEGED if os.getuid() == 0 else 0
    limits = {"file_size": FILE_SIZE, "more_memory": MEMORY, "folder": str(folder), "user": user}
    child = server.start(*words, **limits)
    deadline = time.monotonic() + SECONDS
    hung = False
    while child.exit_code is None:
        if time.monotonic() > deadline and not hung:
            hung = True
            child.kill()
        time.sleep(0.005)
    output = child.output.read_text("utf-8", errors="replace")
    child.output.unlink()
    return Finished(child.wait(), output, hung)


def make_folder(folder: Path) -> None:
    """An empty folder that the command may write into."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    give_away(folder)


def give_away(path: Path) -> None:
    """Let the user without rights own a file or folder."""
    if os.getuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED, follow_symlinks=False)
