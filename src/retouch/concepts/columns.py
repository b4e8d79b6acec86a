"""Map the columns of a user's rows to those of a concept file, and say what was mapped."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retouch.concepts.examples import CUSTOM_COLUMNS
from retouch.concepts.formats import FORMATS, FORMATS_TEXT, Format, find_format
from retouch.concepts.location import SourceLocation
from retouch.concepts.readers import REQUIRED
from retouch.core.errors import DataError, choices, code_list
from retouch.core.finding import Finding

LABEL_OF = {"1": "positive", "true": "positive", "0": "negative", "false": "negative"}
SPLIT_OF = {"dev": "validation", "val": "validation", "valid": "validation"}
NAMES = ("pair", "entity", "group")  # columns whose values may be numbers
SIMILAR = 0.8  # the similarity of two names from which one may be a misspelling of the other

_MAPPED = (*CUSTOM_COLUMNS, *dict.fromkeys(name for one in FORMATS for name in one.columns))


@dataclass(frozen=True)
class _Plan:
    """What is done with the rows that have the same columns."""

    renamed: Mapping[str, str]  # the columns that are read, by their new names
    found: Format | None


class ColumnMapper:
    """Maps rows, and remembers what it did with them.

    Args:
        columns: names of a concept file or of a known format by the names that they have in the
            data; an empty one ignores the column.
        required: the columns that every row must have, where it is of no known format.

    Raises:
        DataError: a column is mapped to an unknown one, or two to the same one.
    """

    def __init__(
        self, columns: Mapping[str, str] | None = None, required: Collection[str] = REQUIRED
    ) -> None:
        self._columns, self._required = dict(columns or {}), required
        for new in self._columns.values():
            if new and new not in _MAPPED:
                message = f"`columns` maps to the unknown column `{new}`."
                raise DataError(message, choices(new, "columns", _MAPPED), code="column-unknown")
        if repeated := [new for new, n in Counter(self._columns.values()).items() if new and n > 1]:
            message = f"`columns` maps two columns to `{repeated[0]}`."
            raise DataError(message, "Map one of them.", code="column-duplicate")
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._formats: Counter[str] = Counter()
        self._seen: dict[str, None] = {}
        self._read: set[str] = set()
        self._labels: set[str] = set()
        self._splits: set[str] = set()

    @property
    def lists(self) -> tuple[str, ...]:
        """The columns of CSV whose fields are lists."""
        return tuple(self.original(name) for name in ("accept", "choices"))

    def original(self, name: str) -> str:
        """The name that the data has for a column."""
        return next((old for old, new in self._columns.items() if new == name), name)

    @property
    def converted(self) -> bool:
        """Whether any row was of a known format, and not of a concept file's."""
        return bool(self._formats)

    def check(self, location: SourceLocation, names: Collection[str]) -> None:
        """Check that the columns of a header or a row are those of a known format.

        Raises:
            DataError: a column is missing.
        """
        self._plan(location, tuple(names))

    def map(self, location: SourceLocation, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a row by the columns of a concept file.

        Raises:
            DataError: a column is missing, or a value is not of the row's format.
        """
        plan = self._plan(location, tuple(values))
        row = {new: values[old] for new, old in plan.renamed.items()}
        for name, value in row.items():
            if isinstance(value, float) and math.isnan(value):
                row[name] = None  # what pandas writes for a missing value
        if plan.found is not None:
            self._formats[plan.found.name] += 1
            converted = plan.found.convert(location, row)
            row = {name: row[name] for name in row if name in CUSTOM_COLUMNS} | converted
        if "label" in row:
            row["label"] = self._word(row["label"], LABEL_OF, self._labels)
        if row.get("split") is not None:
            row["split"] = self._word(row["split"], SPLIT_OF, self._splits)
        for name in NAMES:
            if isinstance(row.get(name), int | float) and not isinstance(row[name], bool):
                # A column of integers with missing values has floats.
                row[name] = f"{row[name]:.15g}"
        return row

    def split_name(self, name: str) -> str:
        """The split that a dataset's split of this name is."""
        return str(self._word(name, SPLIT_OF, self._splits))

    def findings(self) -> Iterator[Finding]:
        """What was mapped and ignored.

        Raises:
            DataError: a column of the mapping does not occur.
        """
        for old in self._columns:
            if old not in self._seen:
                message = f"`columns` maps the column `{old}`, which does not occur."
                hint = choices(old, "columns", self._seen)
                raise DataError(message, hint, code="column-missing")
        if renamed := {old: new for old, new in self._columns.items() if new}:
            listed = ", ".join(f"`{old}` is read as `{new}`" for old, new in renamed.items())
            yield Finding("ok", "columns-mapped", f"{listed}.")
        for one in FORMATS:
            if count := self._formats[one.name]:
                message = f"{count:,} rows are read as {one.name}: {one.mapping}."
                yield Finding("ok", "columns-mapped", message)
        for words, known, noun in (
            (self._labels, LABEL_OF, "label"),
            (self._splits, SPLIT_OF, "split"),
        ):
            if words:
                listed = ", ".join(f"`{word}` is read as `{known[word]}`" for word in sorted(words))
                yield Finding("ok", f"{noun}s-mapped", f"The {noun} {listed}.")
        yield from self._ignored()

    def _ignored(self) -> Iterator[Finding]:
        ignored = [name for name in self._seen if name not in self._read]
        free = [name for name in CUSTOM_COLUMNS if name not in self._seen]
        for name in ignored:
            near = difflib.get_close_matches(name.strip().lower(), free, 1, SIMILAR)
            if near and self._columns.get(name) is None:
                message = f"The column `{name}` is ignored."
                hint = f"Did you mean `{near[0]}`? Rename the column, or map it."
                yield Finding("warning", "column-ignored", message, hint)
        if ignored:
            listed = code_list(name or "(without a name)" for name in ignored)
            yield Finding("ok", "columns-ignored", f"Columns that are not read: {listed}.")

    def _plan(self, location: SourceLocation, names: tuple[str, ...]) -> _Plan:
        """The plan for rows with these columns, made once."""
        if plan := self._plans.get(names):
            return plan
        renamed = {self._columns.get(name, name): name for name in names}
        # What is mapped takes precedence over a column that has the name already.
        renamed |= {new: old for old, new in self._columns.items() if old in names}
        renamed.pop("", None)
        found = find_format(renamed)
        known = set(CUSTOM_COLUMNS) | set(found.columns if found else ())
        if found is None:
            self._check_required(location, renamed)
        renamed = {new: old for new, old in renamed.items() if new in known}
        self._seen |= dict.fromkeys(names)
        self._read |= set(renamed.values())
        plan = self._plans[names] = _Plan(renamed, found)
        return plan

    def _check_required(self, location: SourceLocation, names: Collection[str]) -> None:
        for name in self._required:
            if name not in names:
                near = difflib.get_close_matches(name, [str(one).lower() for one in names], 1)
                suggestion = f"Is it `{near[0]}`? " if near else ""
                hint = (
                    f"{suggestion}Rename or map a column. Besides {code_list(REQUIRED)}, known "
                    f"columns are {FORMATS_TEXT}."
                )
                message = f"the column `{name}` is missing."
                raise location.error("column-missing", message, hint)

    def _word(self, value: Any, known: Mapping[str, str], used: set[str]) -> Any:
        """A label or a split by its own name, and the words that were replaced."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        word = str(value).strip().lower()
        if word not in known:
            return value
        used.add(word)
        return known[word]
