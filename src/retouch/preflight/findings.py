"""Findings about disk space."""

from __future__ import annotations

import shutil
from pathlib import Path

from retouch.core.finding import Finding
from retouch.core.units import size_text


def check_disk(folder: Path, size: int, message: str, hint: str, code: str = "") -> list[Finding]:
    """An error if `size` bytes do not fit into a folder; else a warning with `code`, if given."""
    folder = folder.absolute()
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    message = f"{size_text(size)} {message} {folder}, {size_text(free)} available."
    if size > free:
        return [Finding("error", "disk-full", message, hint)]
    return [Finding("warning", code, message)] if code else []
