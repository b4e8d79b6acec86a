"""Packs: a concept as a folder with `concept.yaml` and a JSONL file for each split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.examples import read_examples
from retouch.concepts.readers import code_list, did_you_mean
from retouch.core.atomic import atomic_write
from retouch.core.config_file import explicit, resolve
from retouch.core.errors import ConfigError, DataError
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import SPLITS, Direction, Split

FILE_NAME = "concept.yaml"

Folder = Path | Traversable


class PackFile(BaseModel):
    """The content of `concept.yaml`. Unknown keys are refused, in directions and metrics too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    title: str
    description: str
    weakens: Direction | None = None
    uses: tuple[str, ...] = ()
    directions: dict[Direction, DirectionSpec] = {}
    settings: dict[Direction, dict[str, Any]] = {}
    metrics: tuple[MetricSpec, ...] = ()


def read_pack(folder: Folder, file_name: str = FILE_NAME) -> tuple[Concept, tuple[str, ...]]:
    """Read a pack without the packs that it uses.

    Args:
        folder: the folder of the pack.
        file_name: the name of its YAML file.

    Returns:
        The concept, and the names of the concepts that it uses.

    Raises:
        DataError: a file is missing or wrong.
    """
    file = folder / file_name
    pack = _read_pack_file(file)
    concept = Concept(
        name=pack.name,
        title=pack.title,
        description=pack.description,
        examples=_read_splits(folder, pack),
        directions=pack.directions,
        weakens=pack.weakens,
        settings={
            direction: _settings(file, direction, values)
            for direction, values in pack.settings.items()
        },
        metrics=pack.metrics,
        source=str(file),
    )
    return concept, pack.uses


def _read_splits(folder: Folder, pack: PackFile) -> dict[Split, tuple[Example, ...]]:
    """The examples of each split; a pack that uses others may have none of its own."""
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    if pack.uses and not any(file.is_file() for file in files.values()):
        return dict.fromkeys(SPLITS, ())
    examples: dict[Split, tuple[Example, ...]] = {}
    for split, file in files.items():
        # A concept without test examples can be edited, and is saved with an empty file.
        empty = split == "test" and file.is_file() and not file.read_bytes()
        examples[split] = () if empty else read_examples(file)
    return examples


def _read_pack_file(file: Folder) -> PackFile:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"The file {file} does not exist.",
            "A pack is a folder with concept.yaml and a .jsonl file for each split.",
            code="file-missing",
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(
            f"{file}{line}: not valid YAML ({error.problem}).",
            "Correct the line.",
            code="yaml-syntax",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"{file} cannot be read: {error}.", "Save it as UTF-8 YAML.", code="file-unreadable"
        ) from None
    if not isinstance(values, dict):
        raise DataError(
            f"{file} is not a mapping.", "Write `key: value` lines.", code="yaml-syntax"
        )
    try:
        pack = PackFile(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        raise _invalid(file, error) from None
    names = [(metric.suite, metric.metric) for metric in pack.metrics]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(
            f"{file}, key `metrics`: `{'.'.join(repeated)}` appears twice.",
            "Remove one.",
            code="metric-duplicate",
        )
    return pack


def _invalid(file: Folder, error: ValidationError) -> DataError:
    """The first problem of a pack's file; the others often follow from it."""
    problem = error.errors()[0]
    *parents, last = (str(part) for part in problem["loc"] if part != "[key]")
    where = f"{file}, key `{'.'.join([*parents, last])}`:"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        kinds: dict[str, Any] = {"directions": DirectionSpec, "metrics": MetricSpec}
        known = list(PackFile.model_fields)
        if parents:
            known = [field.name for field in dataclasses.fields(kinds[parents[0]])]
        hint = f"{did_you_mean(last, known)} The keys are {code_list(known)}.".strip()
        return DataError(f"{where} unknown key `{last}`.", hint, code="key-unknown")
    if problem["type"] == "missing":
        return DataError(f"{where} it is missing.", "Add it.", code="key-missing")
    return DataError(
        f"{where} {problem['msg']}, got {problem['input']!r}.",
        "Correct the value.",
        code="value-invalid",
    )


def _settings(file: Folder, direction: Direction, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return explicit(resolve(values, where=f"{file}, key `settings.{direction}`"))
    except ConfigError as error:
        hint = error.hint or "Correct the value."
        raise DataError(error.message, hint, code="settings-invalid") from None


def save_pack(concept: Concept, folder: Path) -> None:
    """Write a concept as a pack that `load_concept_file` reads back to an equal one.

    The examples and metrics of the packs that it uses are written with its own.

    Raises:
        RunError: the folder cannot be written.
    """
    header = {
        "name": concept.name,
        "title": concept.title,
        "description": concept.description,
        "weakens": concept.weakens,
        "directions": {name: to_plain(spec) for name, spec in concept.directions.items()},
        "settings": {name: dict(values) for name, values in concept.settings.items()},
        "metrics": [to_plain(metric) for metric in concept.metrics],
    }
    atomic_write(folder / FILE_NAME, yaml.safe_dump(header, sort_keys=False))
    for split in SPLITS:
        lines = [to_json(_plain_example(one)) + "\n" for one in concept.examples[split]]
        atomic_write(folder / f"{split}.jsonl", "".join(lines))


def _plain_example(example: Example) -> dict[str, Any]:
    """An example as a line of a pack, without its empty columns."""
    return {key: value for key, value in to_plain(example).items() if value}
