"""Findings about errors and about disk space."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from retouch.core.errors import RetouchError
from retouch.core.finding import Finding
from retouch.core.units import size_text


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


def check_disk(folder: Path, size: int, message: str, hint: str, code: str = "") -> list[Finding]:
    """An error if `size` bytes do not fit into a folder; else a warning with `code`, if given."""
    folder = folder.absolute()
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    message = f"{size_text(size)} {message} {folder}, {size_text(free)} available."
    if size > free:
        return [Finding("error", "disk-full", message, hint)]
    return [Finding("warning", code, message)] if code else []


def first_few(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + others
