"""A table of metrics that prints, converts to pandas and shows in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, overload

from retouch.core.errors import ConfigError
from retouch.core.formatting import change, show_interval, show_value, words
from retouch.core.types import Record, Score

if TYPE_CHECKING:
    import pandas


class Metrics(Sequence[Record]):
    """The metrics of a model, before and after an edit where there was one.

    A sequence of `Record`; `metrics["safety/attack_refusal"]` finds one by its name.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = tuple(records)

    @overload
    def __getitem__(self, key: int | str) -> Record: ...
    @overload
    def __getitem__(self, key: slice) -> Metrics: ...
    def __getitem__(self, key: int | str | slice) -> Record | Metrics:
        """A record by its number or by `suite/metric`, or some of them.

        Raises:
            KeyError: there is no such metric.
        """
        if isinstance(key, slice):
            return Metrics(self._records[key])
        if isinstance(key, int):
            return self._records[key]
        for record in self._records:
            if key in (f"{record.suite}/{record.metric}", record.metric):
                return record
        raise KeyError(key)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Iterable) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [
            f"{record.suite}/{record.metric}: "
            + " -> ".join(show_value(score.value, record.unit) for score in _scores(record))
            for record in self
        ]
        return "\n".join(lines) or "Metrics()"

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each metric: suite, metric, unit, better, and value, low, high, n twice.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ConfigError(
                "`to_pandas` needs pandas.", "pip install pandas", code="library-missing"
            ) from None
        return pandas.DataFrame([_row(record) for record in self])

    def _repr_html_(self) -> str:
        head = "<tr><th>metric</th><th>before</th><th>after</th><th>n</th><th>change</th></tr>"
        rows = []
        for record in self:
            columns = [escape(f"{record.suite}: {words(record.metric)}")]
            for score in (record.before, record.after):
                columns.append("" if score is None else escape(_show(score, record.unit)))
            columns += [str(record.before.n), escape(change(record))]
            rows.append("<tr>" + "".join(f"<td>{column}</td>" for column in columns) + "</tr>")
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _scores(record: Record) -> list[Score]:
    return [score for score in (record.before, record.after) if score is not None]


def _show(score: Score, unit: str) -> str:
    return f"{show_value(score.value, unit)} ({show_interval(score, unit)})"


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {
        "suite": record.suite,
        "metric": record.metric,
        "unit": record.unit,
        "better": record.better,
    }
    for name, score in (("before", record.before), ("after", record.after)):
        for field in ("value", "low", "high", "n"):
            key = name if field == "value" else f"{name}_{field}"
            row[key] = None if score is None else getattr(score, field)
    return row
