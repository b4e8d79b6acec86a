"""Find suites by name or path: the built-in ones, and a user's files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from retouch.concepts.concept import Concept
from retouch.core.errors import DataError, choices
from retouch.suites.build import build_concept
from retouch.suites.suite import Suite, read_suite

SUFFIXES = (".yaml", ".yml")


def suite_names() -> list[str]:
    """The names of the built-in suites, in alphabetical order."""
    return sorted(_builtin())


def load_suite(name_or_path: str | Path) -> Suite:
    """A suite by its name, or a user's by the path of its YAML file; none of its rows is read.

    Raises:
        DataError: there is no such suite, or its file is wrong.
    """
    return read_suite(_file(name_or_path))


def load_suite_concept(
    name_or_path: str | Path, data_dir: Path | str | None = None, limit: int | None = None
) -> Concept:
    """A suite's rows as the test split of a concept.

    Args:
        name_or_path: a built-in suite, or a YAML file.
        data_dir: the folder with the published files. Files of a user's suite are searched in the
            suite's own folder, too. Without a file, the rows are loaded from the hub.
        limit: maximum number of rows, evenly spaced.

    Raises:
        DataError: there is no such suite, its file or its rows are wrong, or they are out of reach.
        ConfigError: a library is missing.
    """
    file = _file(name_or_path)
    folders = [] if data_dir is None else [Path(data_dir).expanduser()]
    for folder in folders:
        if not folder.is_dir():
            message = f"`data_dir` must be a folder, got {str(folder)!r}."
            raise DataError(message, "Check the path.", code="suite-data-missing")
    if isinstance(file, Path):
        folders.append(file.parent)
    return build_concept(read_suite(file), folders, limit, str(file))


def load_suite_concepts(
    names_or_paths: Sequence[str | Path],
    data_dir: Path | str | None = None,
    limit: int | None = None,
) -> list[Concept]:
    """Several suites, each once, as for `load_suite_concept`.

    `NAME:N` has its own limit in place of the common one: `harmbench:100`.

    Raises:
        DataError: as for one; or two different suites have the same name.
        ConfigError: a library is missing.
    """
    found: dict[str, Concept] = {}
    for one in names_or_paths:
        name, count = _with_limit(one)
        concept = load_suite_concept(name, data_dir, limit if count is None else count)
        other = found.setdefault(concept.name, concept)
        if other.hash != concept.hash:
            message = f"Two suites have the name {concept.name}: {other.source}, {concept.source}."
            raise DataError(message, "Give one of them another `name`.", code="suite-duplicate")
    return list(found.values())


def _builtin() -> dict[str, Traversable]:
    folder = resources.files("retouch.suites") / "data"
    return {Path(one.name).stem: one for one in folder.iterdir() if one.name.endswith(SUFFIXES)}


def _with_limit(name_or_path: str | Path) -> tuple[str, int | None]:
    """A name or path, and the limit that follows its colon."""
    name, colon, count = str(name_or_path).rpartition(":")
    if colon and count.isdecimal():
        if int(count) < 1:
            message = f"The suite `{name_or_path}` has a limit below 1."
            raise DataError(message, "Give 1 row or more.", code="suite-limit")
        return name, int(count)
    return str(name_or_path), None


def _file(name_or_path: str | Path) -> Path | Traversable:
    name = str(name_or_path)
    if name in (builtin := _builtin()):
        return builtin[name]
    if Path(name).suffix.lower() in SUFFIXES:
        return Path(name).expanduser()
    hint = f"{choices(name, 'suites', sorted(builtin))} A path must lead to a YAML file."
    raise DataError(f"There is no suite `{name}`.", hint, code="suite-unknown")
