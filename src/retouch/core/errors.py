"""The errors a user can cause or mend. Each says what is wrong and what to do about it."""

from __future__ import annotations


class RetouchError(Exception):
    """Something the user can mend: shown as one message, never as a traceback.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code = 1

    def __init__(self, what: str, mend: str = "") -> None:
        self.what, self.mend = what, mend
        super().__init__(f"{what} {mend}".strip())


class ConfigError(RetouchError):
    """An option or a configuration file is wrong."""

    exit_code = 2


class DataError(RetouchError):
    """A concept or one of its files is wrong; names file, line and column."""

    exit_code = 3


class ModelError(RetouchError):
    """A model cannot be loaded, or its layout is not understood."""

    exit_code = 4


class RunError(RetouchError):
    """A run directory is in the way, incomplete, of another run, or cannot be written."""

    exit_code = 5


class DivergedError(RetouchError):
    """The edit produced non-finite numbers or never stayed within the drift guard."""

    exit_code = 6


class RefusedError(RetouchError):
    """The edit would weaken safety, and no reason for it was given."""

    exit_code = 7
