"""Read CSV and TSV, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from typing import Any

from retouch.concepts.location import CheckColumns, Rows, SourceLocation, unique_columns

DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t]*(?:\r\n|\n|\r)')


def read_delimited(
    file: str, text: str, check: CheckColumns | None = None, lists: Collection[str] = ()
) -> Rows:
    """Rows of a text whose first row names the columns.

    The fields are separated by commas, semicolons or tabs, whichever gives the header the most
    columns, or by the character of a first line `sep=;`. A first column without a name, such as the
    index that pandas writes, has the name of an empty text; trailing separators are ignored.

    Args:
        file: its name, for errors.
        text: its content.
        check: checks the names of the columns, at the header.
        lists: columns whose fields are lists, separated by `|`.

    Raises:
        DataError: the text is not valid CSV, or a row has too many or too few fields.
    """
    skipped, delimiter = 0, ""
    if found := _SEPARATOR_LINE.match(text):
        text, delimiter, skipped = text[found.end() :], found[1], 1
    delimiter = delimiter or _find_delimiter(text)
    # newline="" keeps the line ends inside quoted fields as they are.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        # A row that spans several lines is reported by its first line.
        location = SourceLocation(file, reader.line_num + 1 + skipped)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _syntax_error(location, error) from None
        if not any(field.strip() for field in fields):
            continue  # blank rows, which spreadsheets write after the last row
        if not header:
            header = [field.strip() for field in fields]
            while not header[-1]:
                header.pop()
            if check is not None:
                check(location, header)
            unique_columns(location, [(name, None) for name in header])
            continue
        values: dict[str, Any] = dict(zip(header, _aligned(location, fields, header), strict=True))
        for name in lists:
            if values.get(name):
                values[name] = [one.strip() for one in values[name].split("|")]
        yield location, values


def _find_delimiter(text: str) -> str:
    """The delimiter that gives the first row the most names."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")

    def count(delimiter: str) -> int:
        names = next(csv.reader([first], delimiter=delimiter), [])
        return sum(bool(name.strip()) for name in names)

    return max(DELIMITERS, key=count)


def _aligned(location: SourceLocation, fields: list[str], header: list[str]) -> list[str]:
    """A row's fields, one for each column."""
    excess = fields[len(header) :]
    if len(fields) >= len(header) and not any(field.strip() for field in excess):
        return fields[: len(header)]
    hint = "Give every row one field per column, also where it is empty."
    if excess:
        hint = "Put a field that contains the separator in quotation marks."
    message = f"the row has {len(fields)} fields, the header has {len(header)}."
    raise location.error("csv-fields", message, hint)


def _syntax_error(location: SourceLocation, error: csv.Error) -> Exception:
    limit = csv.field_size_limit()
    if "field limit" in str(error):
        message = f"a field of the row that begins here has more than {limit:,} characters."
        hint = "Shorten it, close an open quotation mark, or use JSONL or Parquet."
        return location.error("text-too-long", message, hint)
    return location.error(
        "csv-syntax",
        f"the row that begins here is not valid CSV ({error}).",
        'Close every quotation mark, and double those inside a field: "say ""yes""".',
    )
