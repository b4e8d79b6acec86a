"""Atomic replacement of files and folders: a reader sees the old content or the new, complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from retouch.core.errors import RunError

# Safetensors writes in Rust and reports a full disk as an error of another type than OSError.
_FULL_DISK = ("No space left", "os error 28", "Disk quota", "StorageFull")
_TOO_LARGE = ("File too large", "os error 27", "FileTooLarge")

LOCK = ".lock"  # the file that `core.lock` makes in a folder
# What a process that was killed leaves: new content that was not renamed yet, and old folders.
_STAGED = re.compile(r"\.[^/]+\.[0-9a-f]{8}\.new")
_PREVIOUS = re.compile(r"\.([^/]+)\.previous")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert the system's errors inside the context to a RunError that names `path`.

    Raises:
        RunError: the disk is full, or the file or folder cannot be written.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        problem = getattr(error, "strerror", None) or str(error)
        hint, code = "Choose another output folder.", "write-failed"
        if number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in _FULL_DISK):
            problem = "the disk is full, and its previous content is unchanged"
            hint, code = "Free some space, then resume the run.", "disk-full"
        elif number == errno.EFBIG or any(text in str(error) for text in _TOO_LARGE):
            problem = "it would exceed the limit of file sizes; its previous content is unchanged"
            hint, code = "Raise the limit (`ulimit -f`), then resume the run.", "disk-full"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "Change the permissions of its folder, or choose another output folder."
            code = "no-permission"
        elif not isinstance(error, OSError):
            raise
        raise RunError(f"{path} cannot be written: {problem}.", hint, code=code) from error


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file, or replace it, in one step; after a failure the old one is unchanged.

    The file's folder is created if it is missing.

    Raises:
        RunError: the path is a link, a folder, a device or a FIFO; the disk is full; or the folder
            cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        message = f"{path} is not a regular file and would be replaced."
        raise RunError(message, "Choose another path.", code="path-taken")
    content = data.encode("utf-8") if isinstance(data, str) else data
    temporary = _temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check before long work that its output can be written at a path, whose folder may be new.

    Raises:
        RunError: the folder that is there, or the first one above it, cannot be written into.
    """
    there = next((one for one in path.absolute().parents if os.path.lexists(one)), path.parent)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        problem = "is no folder" if not there.is_dir() else "cannot be written into"
        message = f"{path} cannot be written: {there} {problem}."
        raise RunError(message, "Choose another path.", code="path-not-writable")


def check_output_file(path: Path, is_ours: Callable[[str], bool]) -> None:
    """Check that a file can be written: nothing is there, or an earlier output of ours.

    Raises:
        RunError: something else is there, or the folder cannot be written into.
    """
    check_writable(path)
    if not (path.is_symlink() or path.exists()):
        return
    try:
        if path.is_file() and not path.is_symlink() and is_ours(path.read_text("utf-8")):
            return
    except (OSError, ValueError, RecursionError):
        pass
    message = f"{path} exists, and is no earlier output of this command."
    raise RunError(message, "Choose another file, or remove that one.", code="path-taken")


def is_free(path: Path, *, leftovers: bool = False) -> bool:
    """Whether a folder can be made at a path: nothing is there, or an empty folder.

    `leftovers` of a process of ours that was killed at its start, and locks, may be in it.
    """
    if not path.exists():
        return True
    return path.is_dir() and all(
        leftovers and (one.name == LOCK or _STAGED.fullmatch(one.name)) for one in path.iterdir()
    )


def check_output_folder(path: Path, marks: Sequence[str]) -> None:
    """Check that a folder can be written into: it is new or empty, or has one of our `marks`.

    Raises:
        RunError: it is a file, has other files alone, or cannot be written.
    """
    check_writable(path)
    is_ours = path.is_dir() and any((path / name).exists() for name in marks)
    is_broken_link = path.is_symlink() and not path.exists()
    if is_broken_link or not (is_ours or is_free(path, leftovers=True)):
        message = f"{path} exists, and is no earlier output of this command."
        raise RunError(message, "Choose another folder.", code="path-taken")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Provide an empty folder to write into, and replace `path` by it at the end of the context.

    The old folder stays until then; if the context raises, it stays for good. After a process was
    killed during the replacement, `restore_folder` restores the old folder.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    staged = _temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        restore_folder(path)
        staged.mkdir()
        try:
            yield staged
            for file in staged.rglob("*"):
                if file.is_file():
                    # Safetensors creates files that only their owner can read; other tools must
                    # read a run too.
                    file.chmod(staged.stat().st_mode & 0o666)
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            for folder in (staged, *(one for one in staged.rglob("*") if one.is_dir())):
                _sync_folder(folder)
            if path.exists():
                os.replace(path, _previous(path))
            os.replace(staged, path)
            _sync_folder(path.parent)
        except OSError:
            restore_folder(path)
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        restore_folder(path)


def restore_folder(path: Path) -> None:
    """Undo a replacement by `atomic_folder` that was interrupted between its two renames."""
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.exists():
        os.replace(previous, path)


def leftovers(folder: Path) -> list[Path]:
    """What killed processes have left in a folder: staged files and folders, and old folders."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    return [
        one
        for one in sorted(folder.iterdir())
        if not one.is_symlink()
        and (_STAGED.fullmatch(one.name) or (one.is_dir() and _PREVIOUS.fullmatch(one.name)))
    ]


def sweep(folder: Path) -> None:
    """Remove the leftovers in a folder, and restore the folders whose replacement was interrupted.

    No other process may be writing into it.

    Raises:
        RunError: the folder cannot be written.
    """
    for one in leftovers(folder):
        with writing(one):
            if previous := _PREVIOUS.fullmatch(one.name):
                restore_folder(one.with_name(previous[1]))
            elif one.is_dir():
                shutil.rmtree(one)
            else:
                one.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a power failure, where the system can."""
    if os.name == "nt":  # which opens no folders
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # files can be made in it, but not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
