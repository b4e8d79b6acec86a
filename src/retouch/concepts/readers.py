"""Read CSV, TSV, JSON, JSONL, Parquet and Arrow files as rows, with the location of each row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from retouch.concepts.columnar import read_arrow, read_parquet
from retouch.concepts.delimited import read_delimited
from retouch.concepts.location import (
    CheckColumns,
    Rows,
    SourceLocation,
    describe_type,
    unique_columns,
)
from retouch.core.errors import DataError, choices, code_list
from retouch.core.files import MAX_TABLE, read_file

REQUIRED = ("prompt", "label")

_JSONL_HINT = 'Write one object per line: {"prompt": "...", "label": "..."}.'
_JSON_HINT = 'Write an array of objects: [{"prompt": "...", "label": "..."}, ...].'
_SPACE = re.compile(r"[ \t\r\n]*")


def read_table(
    file: Path | Traversable, check: CheckColumns | None = None, lists: Collection[str] = ()
) -> Rows:
    """Read a file as rows of values by column; a missing value is None or an empty string.

    Args:
        file: the file; its suffix determines the format.
        check: checks the names of the columns, of a header once (default: any are allowed).
        lists: columns of CSV and TSV whose fields are lists, separated by `|`.

    Raises:
        DataError: the file cannot be read, or a row does not parse or has other columns.
    """
    suffix = Path(file.name).suffix.lower()
    if suffix not in READERS:
        hint = f"The formats are {', '.join(READERS)}."
        if suffix in (".xlsx", ".xls", ".ods"):
            hint = "Save the sheet as CSV UTF-8."
        message = f"{file}: the format `{suffix or file.name}` is not supported."
        raise DataError(message, hint, code="file-format")
    data = _read_bytes(file)
    count = 0
    for row in READERS[suffix](str(file), data, check, lists) if data.strip() else ():
        yield row
        count += 1
    if not count:
        problem = "has no rows" if data.strip() else "is empty"
        hint = f"Add rows with at least {code_list(REQUIRED)}." if check else "Use another file."
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


def _read_delimited(
    file: str, data: bytes, check: CheckColumns | None, lists: Collection[str]
) -> Rows:
    return read_delimited(file, _decode(file, data), check, lists)


def _read_jsonl(file: str, data: bytes, check: CheckColumns | None, _: Collection[str]) -> Rows:
    return _parse_lines(file, _decode(file, data), check)


def _parse_lines(file: str, text: str, check: CheckColumns | None) -> Rows:
    """One object per line."""
    decoder = _decoder(lambda: location)  # of the line that is being parsed
    # Not str.splitlines: JSON strings may contain U+2028 and other line separators unescaped.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        location = SourceLocation(file, number)
        values = _parse(location, partial(decoder.decode, line), _JSONL_HINT)
        yield location, _object(location, values, check, _JSONL_HINT)


def _read_json(file: str, data: bytes, check: CheckColumns | None, _: Collection[str]) -> Rows:
    """The objects of an array, one after the other, each with the line that it begins on."""
    text = _decode(file, data)
    at = _skip(text, 0)
    if text[at : at + 1] != "[":  # a file of one object per line may have this suffix, too
        yield from _parse_lines(file, text, check)
        return
    location, counted = SourceLocation(file, 1), 0
    decoder = _decoder(lambda: location)  # of the object that is being parsed
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        location = SourceLocation(file, location.number + text.count("\n", counted, at))
        counted = at
        values, at = _parse(location, partial(decoder.raw_decode, text, at), _JSON_HINT)
        yield location, _object(location, values, check, _JSON_HINT)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            message = "the array goes on without a comma, or does not end, after the object here."
            raise location.error("json-syntax", message, _JSON_HINT)


def _decoder(location: Callable[[], SourceLocation]) -> json.JSONDecoder:
    """A decoder that refuses an object with a key twice, at the location of the moment."""

    def make(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        return values if len(values) == len(items) else unique_columns(location(), items)

    return json.JSONDecoder(object_pairs_hook=make)


def _skip(text: str, at: int) -> int:
    """The position of the next character that is no space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _parse(location: SourceLocation, decode: Callable[[], Any], hint: str) -> Any:
    try:
        return decode()
    except json.JSONDecodeError as error:
        message = f"not valid JSON ({error.msg})."
        # In an array the object begins at the location, and the error may be further down.
        if error.lineno > 1:
            location = SourceLocation(location.source, error.lineno)
        raise location.error("json-syntax", message, hint, error.colno) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise location.error("json-syntax", f"{error}.", hint) from None
    except RecursionError:
        raise location.error("json-syntax", "the JSON is nested too deeply.", hint) from None


def _object(
    location: SourceLocation, values: Any, check: CheckColumns | None, hint: str
) -> dict[str, Any]:
    if not isinstance(values, dict):
        message = f"this is {describe_type(values)}, not an object."
        raise location.error("json-syntax", message, hint)
    if check is not None:
        check(location, values)
    return values


def _checked(rows: Rows, check: CheckColumns | None) -> Rows:
    for location, values in rows:
        if check is not None:
            check(location, values)
        yield location, values


def _read_parquet(file: str, data: bytes, check: CheckColumns | None, _: Collection[str]) -> Rows:
    return _checked(read_parquet(file, data), check)


def _read_arrow(file: str, data: bytes, check: CheckColumns | None, _: Collection[str]) -> Rows:
    return _checked(read_arrow(file, data), check)


READERS: dict[str, Callable[[str, bytes, CheckColumns | None, Collection[str]], Rows]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def check_columns(
    location: SourceLocation,
    names: Collection[str],
    known: tuple[str, ...],
    required: tuple[str, ...] = REQUIRED,
) -> None:
    """Check the names of a row's columns.

    Raises:
        DataError: a column is unknown, or a required one is missing.
    """
    for name in names:
        if name not in known:
            hint = choices(str(name), "columns", known)
            raise location.error("column-unknown", f"unknown column `{name}`.", hint)
    for name in required:
        if name not in names:
            message = f"the column `{name}` is missing."
            raise location.error("column-missing", message, f"The columns are {code_list(known)}.")
