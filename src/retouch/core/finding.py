"""One result of a check: of a concept's data, or of an edit before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retouch.core.errors import RetouchError

# An error prevents the edit or makes it worthless; a warning does not; `ok` is information.
Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")  # most severe first


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; the hint is empty where nothing has to be done."""

    level: Level
    code: str  # a stable identifier, such as `memory-exceeded`
    message: str
    hint: str = ""


class ErrorsAsFindings:
    """A context that adds an error raised inside to the findings, in place of raising it."""

    def __init__(self, findings: list[Finding]) -> None:
        self._findings = findings

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, RetouchError):
            self._findings.append(Finding("error", error.code, error.message, error.hint))
        return isinstance(error, RetouchError)


def first_few(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + others
