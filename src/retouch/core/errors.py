"""The errors a user can cause or fix. Each states the problem and gives a hint."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from functools import partial

# How libraries report that memory is exhausted: torch on a CPU and on a device, safetensors and the
# system's loader, C++, and Python where there is none for the error either.
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "os error 12",
    "failed to map segment",
    "bad_alloc",
    "error return without exception set",
    "can't start new thread",
)


MAX_MESSAGE = 1500  # characters; a value from a file may have millions


def shorten(text: str, limit: int = 200) -> str:
    """A text of at most `limit` characters: of a longer one, the beginning and the end."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end - 3]}...{text[-end:]}"


class RetouchError(Exception):
    """An error that the user can fix: shown as one message, never as a traceback.

    Attributes:
        message: the problem, with the value that caused it; cut if it is long.
        hint: how to fix it; may be empty.
        code: a stable identifier of the error's kind, for programs and tests.
        exit_code: the exit code of the command line.
    """

    exit_code = 1
    default_code = "error"

    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        self.message = shorten(message, MAX_MESSAGE)
        self.hint, self.code = hint, code or self.default_code
        super().__init__(f"{self.message} {hint}".strip())

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between processes with their hint and code."""
        return partial(type(self), code=self.code), (self.message, self.hint)


class ConfigError(RetouchError):
    """An option or a configuration file is wrong."""

    exit_code = 2
    default_code = "config"


class DataError(RetouchError):
    """A concept or one of its files is wrong; names file, line and column."""

    exit_code = 3
    default_code = "data"


class ModelError(RetouchError):
    """A model cannot be loaded, or its layout is not supported."""

    exit_code = 4
    default_code = "model"


class RunError(RetouchError):
    """A run directory exists already, is incomplete, is of another run, or cannot be written."""

    exit_code = 5
    default_code = "run"


class DivergedError(RetouchError):
    """The training produced non-finite values or never stayed within the maximum drift."""

    exit_code = 6
    default_code = "diverged"


class RefusedError(RetouchError):
    """The edit would weaken safety, and no reason was given."""

    exit_code = 7
    default_code = "weakening"


def reports_no_memory(error: BaseException) -> bool:
    """Whether an error reports that the memory of the host or of a device is exhausted."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    is_kind = not isinstance(error, RetouchError) and isinstance(error, Exception)
    return is_kind and any(text in str(error) for text in _NO_MEMORY)


def choices(word: str, plural: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the closest of the known ones, if any is close, and all of them.

    Args:
        word: the unknown word.
        plural: what the known words are, such as `labels`.
        known: the known words.
    """
    known = list(known)
    close = difflib.get_close_matches(word.strip().lower(), known, n=1)
    suggestion = f"Did you mean `{close[0]}`? " if close else ""
    return f"{suggestion}The {plural} are {code_list(known)}."


def code_list(names: Iterable[str]) -> str:
    """Names as inline code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)
