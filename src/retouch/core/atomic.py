"""Files and folders that are either wholly the old ones or wholly the new ones."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retouch.core.errors import RunError

# Safetensors writes in Rust and reports a full disk as an error type of its own.
_FULL_DISK = ("No space left", "os error 28", "Disk quota", "StorageFull")


def atomic_write(path: Path, data: str | bytes) -> None:
    """Replace a file by a new one in one step; after a failure the old one is still whole.

    The file's folder is made if it is missing.

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
        # mkstemp makes files that only their owner can read; a run is to be shared like any file.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write into, and put it in the place of `path` when all went well.

    What was at `path` stays until then, and for good if the body raises. A process that is killed
    in between leaves the old or the new folder; `restore_folder` finishes what it left.

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
                # Safetensors makes files for their owner alone, as mkstemp does.
                file.chmod(0o666 & ~_umask())
                _sync(file)
        staged.chmod(0o777 & ~_umask())
        _swap_in(staged, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except Exception as error:
        if any(sign in str(error) for sign in _FULL_DISK) and not isinstance(error, RunError):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise cannot_write(path, full) from error
        raise
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Undo a swap of `atomic_folder` that was cut off between its two renames."""
    previous = _previous(path)
    if previous.exists():
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.replace(previous, path)


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that the system would not write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: {path} was not written; what was there before is whole.",
            "Free some space, then go on with `retouch edit --resume RUN`.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"{path} may not be written: {error.strerror}.",
            "LoraDelta the permissions of its folder, or choose another with `--out`.",
        )
    return RunError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose another with `--out`."
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
