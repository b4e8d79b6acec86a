"""Packs: a concept as a folder with `concept.yaml` and a JSONL file for each split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from retouch.concepts.concept import (
    Concept,
    Context,
    Demonstration,
    DirectionSpec,
    Example,
    MetricSpec,
)
from retouch.concepts.example_files import read_examples
from retouch.concepts.hashing import plain_concept
from retouch.core.atomic import atomic_write
from retouch.core.config_file import explicit, read_config_file, resolve
from retouch.core.errors import ConfigError, DataError, choices
from retouch.core.options import flatten
from retouch.core.serialization import to_json
from retouch.core.strict_model import StrictModel
from retouch.core.types import SPLITS, Direction, Split

FILE_NAME = "concept.yaml"
# What a pack may tune: how much is learned and how, and which installed concepts are retained too.
# Everything else is its user's to decide: the model, the direction, the device, what is measured,
# and what a check allows.
TUNABLE_GROUPS = ("lora", "train", "loss", "discriminator", "adversary")
NOT_TUNABLE = ("train.activation_cache", "train.micro_batch_size")  # the machine's memory
TUNABLE_DATA = (
    "data.num_examples",
    "data.num_retain",
    "data.retain_concepts",
    "data.prefill_tokens",
    "data.prefills_per_example",
    "data.wrapped_share",
    "data.elicit",
    "data.max_new_tokens",
    "data.max_base_tokens",
)

Folder = Path | Traversable


class PackFile(StrictModel):
    """The content of `concept.yaml`. Unknown keys are refused, in directions and metrics too."""

    name: str = Field(min_length=1)
    title: str
    description: str
    models: tuple[str, ...] = ()
    add_ordinary: bool = False
    weakens: Direction | None = None
    uses: tuple[str, ...] = ()
    directions: dict[Direction, DirectionSpec] = Field({})
    settings: dict[Direction, dict[str, Any]] = Field({})
    metrics: tuple[MetricSpec, ...] = ()


def read_models(folder: Folder) -> tuple[str, ...]:
    """The models that a pack is for, without reading its examples; empty: any model.

    Raises:
        DataError: `concept.yaml` is missing or wrong.
    """
    return _read_pack_file(folder / FILE_NAME).models


def read_pack(folder: Folder, file_name: str = FILE_NAME) -> tuple[Concept, tuple[str, ...]]:
    """Read a pack without the packs that it uses.

    Returns:
        The concept, and the names of the concepts that it uses.

    Raises:
        DataError: a file is missing or wrong.
    """
    file = folder / file_name
    pack = _read_pack_file(file)
    values = dict(pack) | {
        "examples": _read_splits(folder, pack),
        "settings": {key: _settings(file, key, each) for key, each in pack.settings.items()},
        "source": str(file),
    }
    del values["uses"]
    return Concept(**values), pack.uses


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
    hint = "A pack is a folder with concept.yaml and a .jsonl file for each split."
    try:
        pack = PackFile.model_validate(read_config_file(file, DataError, "yaml-syntax", hint))
    except ValidationError as error:
        raise _invalid(file, error) from None
    names = [f"{metric.suite}.{metric.metric}" for metric in pack.metrics]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        message = f"{file}, key `metrics`: `{repeated}` appears twice."
        raise DataError(message, "Remove one.", code="metric-duplicate")
    return pack


def _invalid(file: Folder, error: ValidationError) -> DataError:
    """The first problem of a pack's file; the others often follow from it."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    where = f"{file}, key `{'.'.join(path)}`:"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        kinds: dict[str, Any] = {
            "directions": DirectionSpec,
            "metrics": MetricSpec,
            "context": Context,
            "demonstrations": Demonstration,
        }
        known = list(PackFile.model_fields)
        if inner := [part for part in path[:-1] if part in kinds]:
            known = [field.name for field in dataclasses.fields(kinds[inner[-1]])]
        hint = choices(path[-1], "keys", known)
        return DataError(f"{where} unknown key `{path[-1]}`.", hint, code="key-unknown")
    if problem["type"] == "missing":
        return DataError(f"{where} it is missing.", "Add it.", code="key-missing")
    message = f"{where} {problem['msg']}, got {problem['input']!r}."
    return DataError(message, "Correct the value.", code="value-invalid")


def _settings(file: Folder, direction: Direction, values: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{file}, key `settings.{direction}`"
    try:
        found = explicit(resolve(values, where=where))
    except ConfigError as error:
        hint = error.hint or "Correct the value."
        raise DataError(error.message, hint, code="settings-invalid") from None
    for path in flatten(found):
        group = path.partition(".")[0]
        if path in NOT_TUNABLE or (group not in TUNABLE_GROUPS and path not in TUNABLE_DATA):
            message = f"{where}: a pack cannot set `{path}`."
            hint = "Give it on the command line or in the call, and remove it here."
            raise DataError(message, hint, code="settings-refused")
    return found


def save_pack(concept: Concept, folder: Path) -> None:
    """Write a concept as a pack that `load_concept_file` reads back to an equal one.

    The examples and metrics of the packs that it uses are written with its own.

    Raises:
        RunError: the folder cannot be written.
    """
    values = plain_concept(concept)
    for split, examples in concept.examples.items():
        plain = (one.to_plain() for one in examples)
        # Empty columns are left out, but the prompt of running text.
        rows = ({key: one[key] for key in one if one[key] or key == "prompt"} for one in plain)
        lines = [to_json(row) + "\n" for row in rows]
        atomic_write(folder / f"{split}.jsonl", "".join(lines))
    atomic_write(folder / FILE_NAME, yaml.safe_dump(values, sort_keys=False))
