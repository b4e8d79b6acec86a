"""The result of a grid point, and the reading of files from which a call continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from retouch.comparison.grid import GridPoint
from retouch.comparison.objective import metric_key
from retouch.core.errors import RunError
from retouch.core.files import MAX_RECORD, read_text
from retouch.core.serialization import from_plain, parse_json
from retouch.core.types import Record, Sample, Score
from retouch.evaluation.statistics import ExampleValues

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """The result of a grid point.

    Attributes:
        reason: why the method failed.
        seconds: time that the method took, without the evaluation.
        threads: number of CPU threads it ran on.
        records: the metrics of the base and, as `after`, of the model with the method applied.
        values: the values of each example for the effect, the drift and the metrics of suites, by
            `suite/metric`.
        samples: responses with the method applied, as many as the grid says.
    """

    point: GridPoint
    state: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    threads: int = 0
    records: tuple[Record, ...] = ()
    values: Mapping[str, ExampleValues] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    def scores(self) -> dict[str, Score]:
        """The scores of the model with the method applied, by `suite/metric`."""
        return {metric_key(record): final_score(record) for record in self.records}


def final_score(record: Record) -> Score:
    """The score of the model with the method applied; of the base where no edit was applied."""
    return record.after or record.before


def read_saved(
    file: Path, key: str, kind: type[T], identity: Mapping[str, Any], code: str
) -> T | None:
    """Read the object of a key from a JSON file, whose key `identity` must have the given value.

    Returns None if the file does not exist.

    Raises:
        RunError: the file is broken (`code`), or was made with another identity; names the first
            difference.
    """
    if not file.exists():
        return None
    try:
        saved = parse_json(read_text(file, MAX_RECORD))
        found, value = dict(saved["identity"]), from_plain(kind, saved[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Remove it, which repeats its runs, or set another `output_dir`."
        raise RunError(f"{file} is broken: {error}.", hint, code=code) from None
    for name in sorted({*found, *identity}):
        if found.get(name) != identity.get(name):
            raise RunError(
                f"{file} was made with other settings: `{name}` is {found.get(name)!r} there and "
                f"{identity.get(name)!r} here.",
                "Set another `output_dir`.",
                code="identity-mismatch",
            )
    return value
