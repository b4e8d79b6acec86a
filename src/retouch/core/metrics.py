"""A list of metrics that prints, converts to pandas and shows in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from retouch.core.formatting import change, show_score, show_value, words
from retouch.core.plugins import import_library
from retouch.core.types import Record

if TYPE_CHECKING:
    import pandas


class Metrics(list[Record]):
    """The metrics of a model, before and after an edit where there was one.

    A list of `Record`; `metrics["safety/attack_refusal"]` finds one by its name.
    """

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Record: ...
    @overload
    def __getitem__(self, key: slice) -> Metrics: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> Record | Metrics:
        """A record by its number or by `suite/metric`, or some of them.

        Raises:
            KeyError: there is no such metric.
        """
        if isinstance(key, slice):
            return Metrics(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        for record in self:
            if key in (f"{record.suite}/{record.metric}", record.metric):
                return record
        raise KeyError(key)

    def __repr__(self) -> str:
        lines = []
        for record in self:
            scores = [score for score in (record.before, record.after) if score is not None]
            values = " -> ".join(show_value(score.value, record.unit) for score in scores)
            lines.append(f"{record.suite}/{record.metric}: {values}")
        return "\n".join(lines) or "Metrics()"

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each metric: suite, metric, unit, better, and value, low, high, n twice.

        Raises:
            ConfigError: pandas is not installed.
        """
        library = import_library("pandas", "`to_pandas`", "pandas")
        rows: list[dict[str, Any]] = []
        for record in self:
            row = {name: getattr(record, name) for name in ("suite", "metric", "unit", "better")}
            for name, score in (("before", record.before), ("after", record.after)):
                row[name] = getattr(score, "value", None)
                row |= {f"{name}_{key}": getattr(score, key, None) for key in ("low", "high", "n")}
            rows.append(row)
        table: pandas.DataFrame = library.DataFrame(rows)
        return table

    def _repr_html_(self) -> str:
        head = "<tr><th>metric</th><th>before</th><th>after</th><th>n</th><th>change</th></tr>"
        rows = []
        for record in self:
            scores = [
                "" if score is None else show_score(score, record.unit)
                for score in (record.before, record.after)
            ]
            name = f"{record.suite}: {words(record.metric)}"
            columns = (name, *scores, str(record.before.n), change(record))
            rows.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in columns) + "</tr>")
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
