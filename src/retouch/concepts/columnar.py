"""Read Parquet and Arrow files in batches, so that a large file does not fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from retouch.concepts.location import Rows, SourceLocation
from retouch.core.errors import DataError

BATCH_ROWS = 4096


def read_parquet(file: str, data: bytes) -> Rows:
    """The rows of a Parquet file.

    Raises:
        DataError: it is not valid, or pyarrow is not installed.
    """
    pyarrow, parquet = _import(file, "Parquet", "parquet")

    def batches() -> Iterator[Any]:
        yield from parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches(BATCH_ROWS)

    return _rows(file, "parquet", pyarrow, batches)


def read_arrow(file: str, data: bytes) -> Rows:
    """The rows of an Arrow file, or of a stream as `datasets` writes it.

    Raises:
        DataError: it is not valid, or pyarrow is not installed.
    """
    pyarrow, ipc = _import(file, "Arrow", "ipc")

    def batches() -> Iterator[Any]:
        source = pyarrow.BufferReader(data)
        if data.startswith(b"ARROW1"):
            reader = ipc.open_file(source)
            found = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            found = iter(ipc.open_stream(source))
        for batch in found:
            batch.validate(full=True)  # wrong offsets would be read from elsewhere in the memory
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)

    return _rows(file, "arrow", pyarrow, batches)


def _rows(file: str, kind: str, pyarrow: Any, batches: Callable[[], Iterator[Any]]) -> Rows:
    number = 0
    try:
        for batch in batches():
            for values in batch.to_pylist():
                number += 1
                yield SourceLocation(file, number, "row"), values
    except (pyarrow.ArrowException, OSError) as error:
        name = "a valid Parquet file" if kind == "parquet" else "a valid Arrow file"
        message = f"{file} is not {name} ({error})."
        raise DataError(message, "Write the file again.", code=f"{kind}-syntax") from None


def _import(file: str, name: str, module: str) -> tuple[Any, Any]:
    """Pyarrow and one of its modules."""
    try:
        return import_module("pyarrow"), import_module(f"pyarrow.{module}")
    except ImportError:
        message = f"{file}: reading {name} needs pyarrow."
        hint = "pip install 'retouch[parquet]'"
        raise DataError(message, hint, code="library-missing") from None
