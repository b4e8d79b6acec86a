"""One process for each run: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retouch.core.atomic import LOCK, sweep, writing
from retouch.core.errors import RunError

if sys.platform != "win32":  # where runs are not locked
    import fcntl

NAME = LOCK


@contextmanager
def locked(folder: Path, *inside: str) -> Iterator[None]:
    """Hold the lock of a folder inside the context; a missing folder is created.

    What killed processes have left in the folder is swept, and in its folders of the names
    `inside`: no other process writes there now.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    if sys.platform == "win32":
        yield  # where another process may be writing, so that nothing is swept
        return
    file = folder / NAME
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(file)
    try:
        with handle:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}")
            handle.flush()
            for one in (folder, *(folder / name for name in inside)):
                sweep(one)
            yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this context of the same folder.

    For a file that several processes read, change and write. The lock is the folder's: it makes no
    file.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _acquire(file: Path) -> IO[str]:
    """The opened file, locked."""
    while True:
        handle = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = handle.read(200).strip() or "another process"
            handle.close()
            raise RunError(
                f"{file.parent} is in use by {holder!r}.",
                "Wait for it, or stop it; then call this again.",
                code="run-locked",
            ) from None
        # The process that held the lock may have removed the file in the meantime.
        try:
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(file)):
                return handle
        except FileNotFoundError:
            pass
        handle.close()
