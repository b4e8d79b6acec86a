"""The rows of a suite: read from a file of the data folder, or from a dataset of the hub."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retouch.concepts.hub_datasets import load_dataset
from retouch.concepts.location import SourceLocation
from retouch.concepts.readers import read_table
from retouch.core.errors import DataError
from retouch.suites.suite import Sample, Source

T = TypeVar("T")

_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Row:
    """A row of an evaluation set.

    Attributes:
        values: by column.
        location: where it was read.
        source: the source that it is of.
    """

    values: Mapping[str, Any]
    location: SourceLocation
    source: Source

    @property
    def id(self) -> str:
        """The row's own `id`, or its number."""
        own = _find(self.values, "id")
        return str(self.location.number if own is None else own)

    def find(self, column: str) -> Any:
        """The value of a column, or of the first of several that is not null, as in `goal|prompt`.

        Raises:
            DataError: the row has none of the columns.
        """
        for name in column.split("|"):
            value = _find(self.values, name.strip())
            if value is not None:
                return value
        known = ", ".join(f"`{name}`" for name in self.values)
        message = f"there is no column `{column}`."
        raise self.location.error("column-missing", message, f"The columns are {known}.")

    def render(self, text: str) -> str:
        """A text with the row's values in its slots; a list becomes its elements, with spaces.

        Raises:
            DataError: a slot names no column of the row.
        """
        # One pass: braces within a value are no slots.
        return _SLOT.sub(lambda slot: _text(self.find(slot[1])), text)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _find(values: Any, path: str) -> Any:
    # A column's own name may have a dot.
    if isinstance(values, Mapping):
        named = [key for key in values if _same(str(key), path)]
        if named:
            return values[named[0]]
    for part in path.split("."):
        if isinstance(values, list | tuple):
            inside = part.isdecimal() and int(part) < len(values)
            values = values[int(part)] if inside else None
        elif isinstance(values, Mapping):
            values = next((values[key] for key in values if _same(str(key), part)), None)
        else:
            return None
    return values


def _same(a: str, b: str) -> bool:
    return re.sub(r"[\s_-]", "", a).casefold() == re.sub(r"[\s_-]", "", b).casefold()


def read_rows(sources: Sequence[Source], name: str, folders: Sequence[Path]) -> list[Row]:
    """The rows of the first source that is at hand: a file of the folders, else a dataset.

    Args:
        sources: the sources of a suite.
        name: the suite, for errors.
        folders: the data folders, in the order in which they are searched.

    Raises:
        DataError: no source is at hand, a file is wrong, or no row is left.
        ConfigError: a dataset is needed, and the library `datasets` is not installed.
    """
    for source in sources:
        for folder in folders if source.file else ():
            if os.path.isfile(folder / source.file):
                return _chosen(source, name, _of_file(source, folder / source.file))
    files = [source.file for source in sources if source.file]
    hint = f"Give a folder with {' or '.join(files)} as `data_dir`." if files else ""
    for source in sources:
        if source.dataset:
            return _chosen(source, name, _of_dataset(source, name, hint))
    where = ", ".join(map(str, folders)) or "no data folder was given"
    message = f"The suite {name} has no file at hand ({where})."
    raise DataError(message, hint, code="suite-data-missing")


def _of_file(source: Source, file: Path) -> Iterator[Row]:
    for location, values in read_table(file):
        yield Row(values, location, source)


def _of_dataset(source: Source, name: str, hint: str) -> Iterator[Row]:
    assert source.dataset is not None
    dataset = load_dataset(
        source.dataset,
        source.config,
        source.split,
        source.revision,
        user=f"The suite {name}",
        hint=hint,
        code="suite-data-missing",
    )
    for number, values in enumerate(dataset, start=1):
        yield Row(dict(values), SourceLocation(str(source), number, "row"), source)


def _chosen(source: Source, name: str, rows: Iterator[Row]) -> list[Row]:
    found = [row for row in rows if all(_is(row, *one) for one in source.where.items())]
    if not found:
        values = ", ".join(f"`{key}` {value!r}" for key, value in source.where.items())
        message = f"The suite {name}: no row of {source} has {values}."
        raise DataError(message, "Use the published file.", code="suite-empty")
    return found


def _is(row: Row, column: str, value: Any) -> bool:
    # A CSV file has texts alone.
    allowed = value if isinstance(value, tuple) else (value,)
    return str(row.find(column)) in map(str, allowed)


def explode(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Rows for the elements of lists: one of each column's elements in each.

    Raises:
        DataError: a column holds no list, or lists of other lengths than the first.
    """
    if not columns:
        return list(rows)
    made = []
    for row in rows:
        lists = [row.find(column) for column in columns]
        if not all(isinstance(one, list | tuple) and len(one) == len(lists[0]) for one in lists):
            names = " and ".join(f"`{column}`" for column in columns)
            message = f"{names} hold no lists of equal length."
            raise row.location.error("column-list", message, "Correct `explode`.")
        for elements in zip(*lists, strict=True):
            own = dict(zip(columns, elements, strict=True))
            # First, since another spelling of the name would find the list.
            made.append(Row({**own, **row.values, **own}, row.location, row.source))
    return made


def sample(items: Sequence[T], samples: Sequence[Sample], limit: int | None = None) -> list[T]:
    """The items that a suite uses, in their order, and at most `limit` evenly spaced ones of them.

    Files list one category after the other, so that the first ones would be of one kind.
    """
    found = list(items)
    for one in samples:
        if one.seed is None:
            found = evenly(found, one.count)
        else:
            count = min(one.count, len(found))
            index = random.Random(one.seed).sample(range(len(found)), count)
            found = [found[i] for i in sorted(index)]
    return found if limit is None else evenly(found, limit)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
