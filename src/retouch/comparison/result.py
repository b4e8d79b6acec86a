"""What a point of the grid came to, and its file: what a comparison goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.grid import GridPoint
from retouch.core import serialization
from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError
from retouch.core.types import Record, Score
from retouch.evaluation.statistics import Rows


@dataclass(frozen=True)
class Result:
    """A point that was made.

    Attributes:
        point: which one.
        state: whether the method came to its end.
        reason: why it failed.
        seconds: that the method took; the measurement is not in it.
        threads: the processor threads it had.
        records: the base and, under `after`, the model with the method on it.
        rows: the effect's and the drift's rows, by `suite/metric`.
    """

    point: GridPoint
    state: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    threads: int = 0
    records: tuple[Record, ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)

    def scores(self) -> dict[str, Score]:
        """The scores of the model with the method on it, by `suite/metric`."""
        return {f"{record.suite}/{record.metric}": last(record) for record in self.records}


def last(record: Record) -> Score:
    """The score of the model with the method on it; of the base where nothing acts on it."""
    return record.after or record.before


def write_cell(folder: Path, result: Result, identity: Mapping[str, Any]) -> None:
    """Write a point's file, in one step.

    Raises:
        RunError: it cannot be written.
    """
    values = {
        **asdict(result.point),
        "identity": dict(identity),
        "state": result.state,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "threads": result.threads,
        "records": [serialization.to_plain(record) for record in result.records],
        "rows": {name: asdict(rows) for name, rows in result.rows.items()},
    }
    atomic_write(folder / f"{result.point.name}.json", serialization.to_json(values) + "\n")


def read_cell(folder: Path, point: GridPoint, identity: Mapping[str, Any]) -> Result | None:
    """A point that is there; None if it is still to be made.

    Raises:
        RunError: its file is broken, or it was made of something else.
    """
    file = folder / f"{point.name}.json"
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text("utf-8"))
        found = values["identity"]
        result = Result(
            point,
            values["state"],
            values["reason"],
            values["seconds"],
            values["threads"],
            tuple(serialization.from_plain(Record, record) for record in values["records"]),
            {
                name: Rows(*(tuple(rows[part]) for part in ("sums", "counts", "groups")))
                for name, rows in values["rows"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is broken: {error}.", "Remove it; it is made again.") from None
    for key in sorted({*found, *identity}):
        if found.get(key) != identity.get(key):
            raise RunError(
                f"{file} was made of something else: its {key} is {found.get(key)!r}, "
                f"not {identity.get(key)!r}.",
                "Choose another folder with --out.",
            )
    return result
