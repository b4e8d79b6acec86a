"""One result of a check: of a concept's data, or of an edit before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")  # most severe first


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, and the result.

    Attributes:
        level: `error` prevents the edit or makes it worthless; `warning` does not; `ok` is for
            information.
        code: a stable identifier of the finding, such as `memory-exceeded`.
        message: what was found, one sentence.
        hint: how to fix it; empty where nothing has to be done.
    """

    level: Level
    code: str
    message: str
    hint: str = ""
