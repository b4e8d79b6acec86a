"""One result of a check: of a concept's data, or of an edit before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
