"""Read CSV, JSONL and Parquet files as rows of values, with the location of each row."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from retouch.core.errors import DataError, choices, code_list
from retouch.core.files import MAX_TABLE, read_file

REQUIRED = ("prompt", "label")


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


Columns = tuple[str, ...] | None
"""The allowed columns; None: any."""


def read_table(
    file: Path | Traversable, known: Columns = None, required: tuple[str, ...] = REQUIRED
) -> Rows:
    """Read a file as rows of values by column; a missing value is None or an empty string.

    Args:
        file: the file; its suffix determines the format.
        known: the allowed columns (default: any, and none is required).
        required: those that every row must have.

    Raises:
        DataError: the file cannot be read, or a row does not parse or has other columns.
    """
    suffix = Path(file.name).suffix.lower()
    if suffix not in READERS:
        hints = {
            ".json": "Write one object per line and name the file .jsonl.",
            ".tsv": "Separate the fields by commas and name the file .csv.",
            ".xlsx": "Save the sheet as CSV UTF-8.",
        }
        hint = hints.get(suffix, f"The formats are {', '.join(READERS)}.")
        message = f"{file}: the format `{suffix or file.name}` is not supported."
        raise DataError(message, hint, code="file-format")
    data = _read_bytes(file)
    empty = True
    for location, values in READERS[suffix](str(file), data, known, required):
        if known is not None:
            check_columns(location, values, known, required)
        yield location, values
        empty = False
    if empty:
        problem = "has no rows" if data.strip() else "is empty"
        hint = f"Add rows with at least {code_list(required)}." if known else "Use another file."
        raise DataError(f"{file} {problem}.", hint, code="file-empty")


def read_lines(file: Path) -> Iterator[tuple[SourceLocation, str]]:
    """The lines of a text file that are not blank.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    for number, line in enumerate(_decode(str(file), _read_bytes(file)).splitlines(), start=1):
        if line.strip():
            yield SourceLocation(str(file), number), line.strip()


def _read_bytes(file: Path | Traversable) -> bytes:
    try:
        return read_file(file, MAX_TABLE)
    except FileNotFoundError:
        message = f"The file {file} does not exist."
        raise DataError(message, "Check the path.", code="file-missing") from None
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}."
        raise DataError(message, code="file-unreadable") from None


def _decode(file: str, data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise SourceLocation(file, line).error(
            "encoding",
            f"the byte 0x{data[error.start]:02x} is not UTF-8.",
            "Save the file as UTF-8 (in Excel: CSV UTF-8).",
        ) from None


def _read_csv(file: str, data: bytes, known: Columns, required: tuple[str, ...]) -> Rows:
    # newline="" keeps the line ends inside quoted fields as they are.
    reader = csv.reader(io.StringIO(_decode(file, data), newline=""), strict=True)
    header: list[str] = []
    while True:
        # A row that spans several lines is reported by its first line.
        location = SourceLocation(file, reader.line_num + 1)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise location.error(
                "csv-syntax",
                f"the row that begins here is not valid CSV ({error}).",
                'Close every quotation mark, and double those inside a field: "say ""yes""".',
            ) from None
        if not any(field.strip() for field in fields):
            continue  # blank rows, which spreadsheets write after the last row
        if not header:
            header = [field.strip() for field in fields]
            _check_header(location, header, known, required)
            continue
        if len(fields) != len(header):
            hint = "Give every row one field per column, also where it is empty."
            if len(fields) > len(header):
                hint = "Put a field that contains commas in quotation marks."
            message = f"the row has {len(fields)} fields, the header has {len(header)}."
            raise location.error("csv-fields", message, hint)
        values: dict[str, Any] = dict(zip(header, fields, strict=True))
        for name in ("accept", "choices"):
            if known is not None and values.get(name):
                values[name] = [text.strip() for text in values[name].split("|")]
        yield location, values


def _check_header(
    location: SourceLocation, names: list[str], known: Columns, required: tuple[str, ...]
) -> None:
    if known is None:
        _unique(location, [(name, None) for name in names])
        return
    for separator, plural in ((";", "semicolons"), ("\t", "tabs")):
        parts = names[0].split(separator)
        if len(names) == 1 and len(parts) > 1 and set(parts) & set(known):
            message = f"the columns are separated by {plural}."
            hint = "Save the file with commas as separators."
            raise location.error("csv-delimiter", message, hint)
    check_columns(location, names, known, required)
    _unique(location, [(name, None) for name in names])


def _unique(location: SourceLocation, items: list[tuple[str, Any]]) -> dict[str, Any]:
    """The items as a mapping."""
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            message = f"the column `{name}` appears twice."
            raise location.error("column-duplicate", message, "Remove one of them.")
        values[name] = value
    return values


def _read_jsonl(file: str, data: bytes, *_: Columns) -> Rows:
    hint = 'Write one object per line: {"prompt": "...", "label": "..."}.'
    # Not str.splitlines: JSON strings may contain U+2028 and other line separators unescaped.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _decode(file, data)), start=1):
        location = SourceLocation(file, number)
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=partial(_unique, location))
        except json.JSONDecodeError as error:
            message = f"not valid JSON ({error.msg})."
            raise location.error("json-syntax", message, hint, error.colno) from None
        except ValueError as error:  # a number of more digits than Python converts
            raise location.error("json-syntax", f"{error}.", hint) from None
        except RecursionError:
            raise location.error("json-syntax", "the JSON is nested too deeply.", hint) from None
        if not isinstance(values, dict):
            message = f"this is {describe_type(values)}, not an object."
            raise location.error("json-syntax", message, hint)
        yield location, values


def _read_parquet(file: str, data: bytes, *_: Columns) -> Rows:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError:
        message = f"{file}: reading Parquet needs pyarrow."
        hint = "pip install 'retouch[parquet]'"
        raise DataError(message, hint, code="library-missing") from None
    try:
        table = parquet.read_table(BufferReader(data))
    except (ArrowException, OSError) as error:
        message = f"{file} is not a valid Parquet file ({error})."
        raise DataError(message, "Write the file again.", code="parquet-syntax") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield SourceLocation(file, number, "row"), values


READERS: dict[str, Callable[[str, bytes, Columns, tuple[str, ...]], Rows]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def check_columns(
    location: SourceLocation,
    names: Iterable[str],
    known: tuple[str, ...],
    required: tuple[str, ...] = REQUIRED,
) -> None:
    """Check the names of a row's columns.

    Raises:
        DataError: a column is unknown, or a required one is missing.
    """
    names = list(names)
    for name in names:
        if name not in known:
            hint = choices(str(name), "columns", known)
            raise location.error("column-unknown", f"unknown column `{name}`.", hint)
    for name in required:
        if name not in names:
            message = f"the column `{name}` is missing."
            raise location.error("column-missing", message, f"The columns are {code_list(known)}.")


def describe_type(value: Any) -> str:
    """A value's type in words, for an error message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), repr(value))
