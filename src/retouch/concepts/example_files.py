"""Read the examples of a file: of a pack, whose columns are fixed, or of a user's."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path

from retouch.concepts.columns import ColumnMapper
from retouch.concepts.concept import Example
from retouch.concepts.consistency import check_consistent
from retouch.concepts.examples import COLUMNS, LocatedExample, parse_row
from retouch.concepts.location import SourceLocation
from retouch.concepts.readers import check_columns, read_table
from retouch.concepts.targets import pair_same_prompts
from retouch.core.finding import Finding


def read_examples(file: Path | Traversable) -> tuple[Example, ...]:
    """Read a file of a pack, in file order.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """

    def check(location: SourceLocation, names: Collection[str]) -> None:
        check_columns(location, names, COLUMNS)

    rows = read_table(file, check, ("accept", "choices"))
    examples = [parse_row(location, values) for location, values in rows]
    check_consistent(examples)
    return tuple(one.example for one in examples)


def read_user_examples(
    file: Path, columns: Mapping[str, str] | None = None
) -> tuple[list[LocatedExample], list[Finding]]:
    """Read a user's file, in file order, with columns of any known format (`formats.py`).

    Args:
        file: the file; its suffix determines the format.
        columns: names of known columns by the names that they have in the file.

    Returns:
        The examples, and what was mapped, ignored and left out.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """
    mapper = ColumnMapper(columns)
    rows = read_table(file, mapper.check, mapper.lists)
    examples = [
        parse_row(location, mapper.map(location, values), custom=True) for location, values in rows
    ]
    return finish_mapping(mapper, examples)


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pause the collection of cycles, which visits all examples again and again as they are made.

    They have no cycles; it takes a third of the time otherwise.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def finish_mapping(
    mapper: ColumnMapper, examples: list[LocatedExample]
) -> tuple[list[LocatedExample], list[Finding]]:
    """The examples of mapped rows, and what was done with the rows.

    A prompt that a published format repeats is used once. In a concept file it is an error.

    Raises:
        DataError: an example appears twice, or only some have a split.
    """
    findings = list(mapper.findings())
    if mapper.converted:
        examples, repeated = pair_same_prompts(examples)
        if repeated:
            message = f"{repeated:,} rows repeat the prompt of an earlier one and are left out."
            findings.append(Finding("warning", "prompts-repeated", message))
    check_consistent(examples)
    return examples, findings
