"""Metrics that a benchmark keeps in a file, so that a repeated run does not measure them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from retouch.comparison.result import read_saved
from retouch.core.atomic import atomic_write
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import Record


def saved_records(
    file: Path, identity: Mapping[str, Any], measure: Callable[[], Iterable[Record]] | None
) -> tuple[Record, ...] | None:
    """The metrics of a file, or what `measure` finds, which is written there.

    Args:
        file: a JSON file.
        identity: what decides the metrics.
        measure: measures them; None: they cannot be measured, and without the file are None.

    Raises:
        RunError: the file is broken, or was made with another identity.
    """
    records = read_saved(file, "records", tuple[Record, ...], identity, "result-broken")
    if records is None and measure is not None:
        records = tuple(measure())
        saved = {"identity": identity, "records": to_plain(records)}
        atomic_write(file, to_json(saved, indent=2) + "\n")
    return records
