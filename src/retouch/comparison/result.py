"""The result of a grid point, and its file, from which a comparison continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.grid import GridPoint
from retouch.comparison.objective import metric_key
from retouch.comparison.study import check_identity
from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError
from retouch.core.serialization import from_plain, to_json, to_plain
from retouch.core.types import Record, Score
from retouch.evaluation.statistics import ExampleValues


@dataclass(frozen=True)
class Result:
    """The result of a grid point.

    Attributes:
        point: the grid point.
        state: whether the method completed.
        reason: why it failed.
        seconds: time that the method took, without the evaluation.
        threads: number of CPU threads it ran on.
        records: the metrics of the base and, as `after`, of the model with the method applied.
        values: the values of each example for the effect and the drift, by `suite/metric`.
    """

    point: GridPoint
    state: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    threads: int = 0
    records: tuple[Record, ...] = ()
    values: Mapping[str, ExampleValues] = field(default_factory=dict)

    def scores(self) -> dict[str, Score]:
        """The scores of the model with the method applied, by `suite/metric`."""
        return {metric_key(record): final_score(record) for record in self.records}


def final_score(record: Record) -> Score:
    """The score of the model with the method applied; of the base where no edit was applied."""
    return record.after or record.before


def write_result(folder: Path, result: Result, identity: Mapping[str, Any]) -> None:
    """Write the result file of a point, atomically.

    Raises:
        RunError: it cannot be written.
    """
    values = {"identity": dict(identity), "result": to_plain(result)}
    atomic_write(folder / f"{result.point.name}.json", to_json(values) + "\n")


def read_result(folder: Path, point: GridPoint, identity: Mapping[str, Any]) -> Result | None:
    """Read the result file of a point; None if it does not exist.

    Raises:
        RunError: the file is broken, or was made with other settings.
    """
    file = folder / f"{point.name}.json"
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text("utf-8"))
        found, result = values["identity"], from_plain(Result, values["result"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} is broken: {error}.",
            "Remove it; the next comparison makes it again.",
            code="result-broken",
        ) from None
    check_identity(file, found, identity)
    return result
