"""The user's cache folder: what can be made again, and is kept to save time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$RETOUCH_CACHE`, else `$XDG_CACHE_HOME/retouch`, else `~/.cache/retouch`; may not exist."""
    if own := os.environ.get("RETOUCH_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # A relative XDG path is invalid and ignored, as the specification says.
    parent = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return parent / "retouch"
