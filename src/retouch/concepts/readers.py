"""Tables of text: CSV, JSONL and Parquet as rows of values, each with the place it stands at."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from retouch.core.errors import DataError

REQUIRED = ("prompt", "label")


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where a row stands: a line of a text file, from 1, or a row of a table."""

    file: str
    line: int
    unit: Literal["line", "row"] = "line"

    def error(self, what: str, hint: str = "", column: int | str | None = None) -> DataError:
        """A DataError that begins with the place."""
        at = "" if column is None else f", column {column}"
        return DataError(f"{self.file}, {self.unit} {self.line}{at}: {what}", hint)


_Rows = Iterator[tuple[SourceLocation, dict[str, Any]]]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to `word`, or nothing if none is near."""
    near = difflib.get_close_matches(word.strip().lower(), list(known), n=1)
    return f"Did you mean `{near[0]}`?" if near else ""


def read_table(file: Path | Traversable, known: tuple[str, ...]) -> _Rows:
    """Read a file's rows as values by column; an absent value is None or an empty string.

    Args:
        file: what to read; its ending says the format.
        known: the columns there may be, `prompt` and `label` among them, which there must be.

    Raises:
        DataError: the file cannot be read, or a row does not parse or has other columns.
    """
    suffix = Path(file.name).suffix.lower()
    if suffix not in READERS:
        hints = {
            ".json": "Write one object a line and call it .jsonl.",
            ".tsv": "Separate the points with commas and call it .csv.",
            ".xlsx": "Save the sheet as CSV UTF-8.",
        }
        hint = hints.get(suffix, f"The formats are: {', '.join(READERS)}.")
        raise DataError(f"{file}: `{suffix or file.name}` is no format of rows.", hint)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {file}.", "Check the path.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    empty = True
    for place, values in READERS[suffix](str(file), data, known):
        _check_columns(place, values, known)
        yield place, values
        empty = False
    if empty:
        what = "holds no rows" if data.strip() else "is empty"
        raise DataError(f"{file} {what}.", f"Give it rows with at least {named(REQUIRED)}.")


def _decode(file: str, data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise SourceLocation(file, line).error(
            f"the byte 0x{data[error.start]:02x} is not UTF-8.",
            "Save the file as UTF-8 (in Excel: CSV UTF-8).",
        ) from None


def _csv(file: str, data: bytes, known: tuple[str, ...]) -> _Rows:
    # Without newline="" the line ends within quoted points would change.
    reader = csv.reader(io.StringIO(_decode(file, data), newline=""), strict=True)
    header: list[str] = []
    while True:
        place = SourceLocation(
            file, reader.line_num + 1
        )  # a row of many lines is named by its first
        try:
            points = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise place.error(
                f"the row that begins here is not CSV ({error}).",
                'Close every quotation mark, and double those within a point: "progress ""yes""".',
            ) from None
        if not any(point.strip() for point in points):
            continue  # blank, as spreadsheets leave below the last row
        if not header:
            header = _header(place, points, known)
            continue
        if len(points) != len(header):
            many = len(points) > len(header)
            raise place.error(
                f"the row has {len(points)} points where the header has {len(header)}.",
                "Put a point that holds commas in quotation marks."
                if many
                else "Give every row one point a column, empty ones too.",
            )
        values: dict[str, Any] = dict(zip(header, points, strict=True))
        if values.get("accept"):
            values["accept"] = [phrase.strip() for phrase in values["accept"].split("|")]
        yield place, values


def _header(place: SourceLocation, points: list[str], known: tuple[str, ...]) -> list[str]:
    names = [point.strip() for point in points]
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and set(names[0].split(sign)) & set(known) and sign in names[0]:
            raise place.error(
                f"the columns are separated by {name}.", "Save the file with commas between them."
            )
    _check_columns(place, names, known)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise place.error(f"the column `{twice[0]}` is there twice.", "Remove one of them.")
    return names


def _jsonl(file: str, data: bytes, known: tuple[str, ...]) -> _Rows:
    example = 'Write one object a line: {"prompt": "...", "label": "..."}.'
    # Not str.splitlines: JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _decode(file, data)), start=1):
        place = SourceLocation(file, number)
        if not line.strip():
            continue

        def once(items: list[tuple[str, Any]], place: SourceLocation = place) -> dict[str, Any]:
            keys = [key for key, _ in items]
            for key in keys:
                if keys.count(key) > 1:
                    raise place.error("the key is there twice.", "Remove one of them.", f"`{key}`")
            return dict(items)

        try:
            values = json.loads(line, object_pairs_hook=once)
        except json.JSONDecodeError as error:
            raise place.error(f"not JSON ({error.msg}).", example, error.colno) from None
        if not isinstance(values, dict):
            raise place.error(f"this is {kind_of(values)}, not an object.", example)
        yield place, values


def _parquet(file: str, data: bytes, known: tuple[str, ...]) -> _Rows:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError:
        raise DataError(
            f"{file}: reading Parquet needs pyarrow.", "Install it: pip install 'retouch[parquet]'."
        ) from None
    try:
        table = parquet.read_table(BufferReader(data))
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} is not Parquet ({error}).", "Write the file anew.") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield SourceLocation(file, number, "row"), values


READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _check_columns(place: SourceLocation, names: Iterable[str], known: tuple[str, ...]) -> None:
    names = list(names)
    for name in names:
        if name not in known:
            hint = f"{did_you_mean(name, known)} The columns are {named(known)}.".strip()
            raise place.error(f"unknown column `{name}`.", hint)
    for name in REQUIRED:
        if name not in names:
            raise place.error(f"there is no `{name}`.", f"The columns are {named(known)}.")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), repr(value))


def named(names: Iterable[str]) -> str:
    """The names in code marks, with commas between them."""
    return ", ".join(f"`{name}`" for name in names)
