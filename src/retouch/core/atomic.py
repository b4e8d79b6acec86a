"""Atomic replacement of files and folders: a reader sees the old content or the new, complete."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retouch.core.errors import RunError

# Safetensors writes in Rust and reports a full disk as an error of another type than OSError.
_FULL_DISK = ("No space left", "os error 28", "Disk quota", "StorageFull")


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file, or replace it, in one step; after a failure the old one is unchanged.

    The file's folder is created if it is missing.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates files that only their owner can read; other tools must read a run too.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Provide an empty folder to write into, and replace `path` by it at the end of the context.

    The old folder stays until then; if the context raises, it stays for good. After a process was
    killed during the replacement, `restore_folder` restores the old folder.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    staged: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        restore_folder(path)
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
        yield staged
        for file in sorted(staged.rglob("*")):
            if file.is_file():
                # Safetensors creates files that only their owner can read, like mkstemp.
                file.chmod(0o666 & ~_umask())
                _sync(file)
        staged.chmod(0o777 & ~_umask())
        _swap_in(staged, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except Exception as error:
        if any(text in str(error) for text in _FULL_DISK) and not isinstance(error, RunError):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise cannot_write(path, full) from error
        raise
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Undo a replacement by `atomic_folder` that was interrupted between its two renames."""
    previous = _previous(path)
    if previous.exists():
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.replace(previous, path)


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that the system did not write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: {path} was not written. Its previous content is unchanged.",
            "Free some space, then resume the run.",
            code="disk-full",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"There is no permission to write {path}: {error.strerror}.",
            "Change the permissions of its folder, or choose another output folder.",
            code="no-permission",
        )
    return RunError(
        f"{path} cannot be written: {error.strerror or error}.",
        "Choose another output folder.",
        code="write-failed",
    )


def _swap_in(staged: Path, path: Path) -> None:
    previous = _previous(path)
    if path.exists():
        os.replace(path, previous)
    try:
        os.replace(staged, path)
    except OSError:
        with suppress(OSError):
            restore_folder(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
