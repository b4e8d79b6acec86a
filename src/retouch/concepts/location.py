"""Where an example comes from, and the errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from retouch.core.errors import DataError


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where an example comes from.

    Attributes:
        source: the file, or the argument that was passed in Python.
        number: the line of a text file or the row of a table, from 1; the index of an argument.
        unit: what `number` counts.
    """

    source: str
    number: int
    unit: Literal["line", "row", "index"] = "line"

    def __str__(self) -> str:
        return f"{self.source}, {self.short}" if self.unit != "index" else self.short

    @property
    def short(self) -> str:
        """The location within its own file or list: `line 3`, or `source[3]`."""
        if self.unit == "index":
            return f"{self.source}[{self.number}]"
        return f"{self.unit} {self.number}"

    def error(
        self, code: str, message: str, hint: str = "", column: int | str | None = None
    ) -> DataError:
        """A DataError whose message begins with the location."""
        name = f"`{column}`" if isinstance(column, str) else column
        suffix = "" if column is None else f", column {name}"
        return DataError(f"{self}{suffix}: {message}", hint, code=code)


Rows = Iterator[tuple[SourceLocation, dict[str, Any]]]
"""Rows of values by column, each with its location."""

CheckColumns = Callable[[SourceLocation, Collection[str]], None]
"""Raises a DataError at a header, or at a row without one, whose columns are wrong."""


def unique_columns(location: SourceLocation, items: list[tuple[str, Any]]) -> dict[str, Any]:
    """The items as a mapping.

    Raises:
        DataError: a name appears twice.
    """
    values: dict[str, Any] = dict(items)
    if len(values) != len(items):
        names = [name for name, _ in items]
        name = next(name for name in names if names.count(name) > 1)
        message = f"the column `{name}` appears twice."
        raise location.error("column-duplicate", message, "Remove one of them.")
    return values


def describe_type(value: Any) -> str:
    """A value's type in words, for an error message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), repr(value))
