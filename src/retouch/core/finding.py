"""One thing found out before an edit, and what would mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["fine", "note", "stop"]
LEVELS: tuple[Level, ...] = ("stop", "note", "fine")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and how it stands.

    Attributes:
        level: `fine`; `note`, which is worth knowing and stops nothing; `stop`, with which the edit
            would not run to its end, or would be worth nothing.
        about: what it is about, in a word: `weights`, `memory`.
        what: what was found, a sentence.
        mend: what to do about it; empty where nothing has to be done.
    """

    level: Level
    about: str
    what: str
    mend: str = ""
