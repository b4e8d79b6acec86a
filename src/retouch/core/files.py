"""Read files that may come from elsewhere: regular ones alone, of a bounded size."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from importlib.resources.abc import Traversable
from pathlib import Path

MIB = 1 << 20
MAX_CONFIG = MIB  # configurations, concept.yaml, suites, chat templates
MAX_RECORD = 256 * MIB  # what runs and comparisons record
MAX_TABLE = 1024 * MIB  # examples


def read_file(file: Path | Traversable, limit: int) -> bytes:
    """The content of a regular file.

    A FIFO or a device would never end; they are not opened for reading in the first place.

    Args:
        file: its path; or a file of a package, which is read as it is.
        limit: the maximum size, in bytes.

    Raises:
        OSError: it cannot be read, is not a regular file or is larger; `strerror` says so.
    """
    if not isinstance(file, Path):
        return file.read_bytes()
    if "\0" in str(file):
        raise OSError(errno.EINVAL, "its name has a NUL character", str(file))
    with open(file, "rb", opener=_open_at_once) as opened:
        found = os.fstat(opened.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        content = opened.read(limit + 1)
    if len(content) > limit:
        problem = f"it is larger than {limit // MIB} MiB"
        raise OSError(errno.EFBIG, problem, str(file))
    return content


def read_text(file: Path | Traversable, limit: int) -> str:
    """The content of a regular file in UTF-8.

    Raises:
        OSError: as for `read_file`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_file(file, limit).decode("utf-8")


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
