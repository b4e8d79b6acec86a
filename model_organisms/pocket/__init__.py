"""`pocket`, the built-in model: its knowledge, its grammar, its training and its concepts' data."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[2] / "src" / "retouch"

WEIGHTS = _PACKAGE / "models" / "pocket"
PACKS = _PACKAGE / "concepts" / "packs"
