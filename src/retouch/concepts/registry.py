"""Concepts by name or path: the built-in packs, a user's pack, a user's own file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.custom import CAPABILITY, own_concept
from retouch.concepts.examples import read_examples
from retouch.concepts.readers import READERS, did_you_mean, named
from retouch.core.atomic import atomic_write
from retouch.core.config_file import explicit, resolve
from retouch.core.errors import ConfigError, DataError
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import SPLITS, Direction, Split


class PackFile(BaseModel):
    """What `concept.yaml` holds. Unknown keys are refused, within `direction_spec` and `metrics` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    title: str
    description: str
    weakens: Direction | None = None
    uses: tuple[str, ...] = ()
    directions: dict[Direction, DirectionSpec] = {}
    settings: dict[Direction, dict[str, Any]] = {}
    metrics: tuple[MetricSpec, ...] = ()


def packs() -> Traversable:
    """The folder of the built-in packs."""
    return resources.files("retouch.concepts").joinpath("packs")


def builtin_names() -> list[str]:
    """The names of the built-in concepts, in alphabetical order."""
    if not packs().is_dir():
        return []
    folders = packs().iterdir()
    return sorted(one.name for one in folders if one.joinpath("concept.yaml").is_file())


def load_concept(name_or_path: str) -> Concept:
    """Load a built-in concept by its name, or a user's by its path.

    A path leads to a CSV, JSONL or Parquet file of rows, to a pack's folder, or to its YAML file. A
    name wins over a path: write `./safety` for a folder of that name.

    Raises:
        DataError: there is no such concept, or its files are wrong.
    """
    if name_or_path in builtin_names():
        return _pack(packs().joinpath(name_or_path, "concept.yaml"))
    return load_concept_file(name_or_path)


def concept_names() -> list[str]:
    """The names that `load_concept` knows."""
    return builtin_names()


def load_concept_file(file: Path | str) -> Concept:
    """Load a user's concept from a file of examples, a pack's folder or its YAML file.

    Raises:
        DataError: there is no such file, or it is wrong.
    """
    name_or_path, path = str(file), Path(file).expanduser()
    if path.is_dir():
        return _pack(path / "concept.yaml")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _pack(path)
    if path.is_file() or path.suffix.lower() in READERS:
        return _complete(own_concept(path), (CAPABILITY,))
    raise _unknown(name_or_path)


def _unknown(name: str) -> DataError:
    names = builtin_names()
    hint = f"{did_you_mean(name, names)} The built-in ones are {named(names)}; a path may lead to "
    formats = ", ".join(READERS)
    return DataError(
        f"There is no concept or file `{name}`.",
        f"{hint}a {formats} file, a pack's folder or its YAML file.".strip(),
    )


def _pack(file: Path | Traversable, trail: tuple[str, ...] = ()) -> Concept:
    pack = _read_pack(file)
    # Traversable has no parent, and a built-in pack may lie in an archive.
    folder = file.parent if isinstance(file, Path) else packs().joinpath(pack.name)
    concept = Concept(
        name=pack.name,
        title=pack.title,
        description=pack.description,
        examples=_rows(folder, pack),
        directions=pack.directions,
        weakens=pack.weakens,
        settings={
            direction: _settings(file, direction, values)
            for direction, values in pack.settings.items()
        },
        metrics=pack.metrics,
        source=str(file),
    )
    names = builtin_names()
    for name in pack.uses:
        if name not in names:
            hint = f"{did_you_mean(name, names)} The built-in ones are {named(names)}.".strip()
            raise DataError(f"{file}, key `uses`: there is no concept `{name}`.", hint)
    return _complete(concept, pack.uses, (*trail, pack.name))


def _rows(folder: Path | Traversable, pack: PackFile) -> dict[Split, tuple[Example, ...]]:
    """The rows of a pack by split; one that uses others may have none of its own."""
    files = {split: folder.joinpath(f"{split}.jsonl") for split in SPLITS}
    if pack.uses and not any(file.is_file() for file in files.values()):
        return dict.fromkeys(SPLITS, ())
    return {split: read_examples(file) for split, file in files.items()}


def _read_pack(file: Path | Traversable) -> PackFile:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"There is no file {file}.", "A pack is a folder with concept.yaml and three .jsonl."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{file}{line}: not YAML ({error.problem}).", "Mend the line.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Save it as UTF-8 YAML.") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} holds no mapping.", "Write `key: value` lines.")
    try:
        pack = PackFile(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        raise _invalid(file, error) from None
    once = [(metric.suite, metric.metric) for metric in pack.metrics]
    if twice := next((pair for pair in once if once.count(pair) > 1), None):
        raise DataError(
            f"{file}, key `metrics`: `{'.'.join(twice)}` is there twice.", "Remove one."
        )
    return pack


def _invalid(file: Path | Traversable, error: ValidationError) -> DataError:
    """The first problem of a pack's file; the others often follow from it."""
    problem = error.errors()[0]
    *parents, last = (str(part) for part in problem["loc"] if part != "[key]")
    at = f"{file}, key `{'.'.join([*parents, last])}`:"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        kinds: dict[str, Any] = {"directions": DirectionSpec, "metrics": MetricSpec}
        known = list(PackFile.model_fields)
        if parents:
            known = [field.name for field in dataclasses.fields(kinds[parents[0]])]
        hint = f"{did_you_mean(last, known)} The keys are {named(known)}.".strip()
        return DataError(f"{at} unknown key `{last}`.", hint)
    if problem["type"] == "missing":
        return DataError(f"{at} it is missing.", "Add it.")
    return DataError(f"{at} {problem['msg']}, not {problem['input']!r}.", "Mend the value.")


def _settings(
    file: Path | Traversable, direction: Direction, values: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        return explicit(resolve(values, where=f"{file}, key `settings.{direction}`"))
    except ConfigError as error:
        raise DataError(error.message, error.hint or "Correct the value.") from None


def _complete(concept: Concept, uses: Iterable[str], trail: tuple[str, ...] = ()) -> Concept:
    """Add what the used packs bring, check the labels, and write the hash."""
    rows = {split: dict.fromkeys(concept.examples[split]) for split in SPLITS}
    metrics = {(metric.suite, metric.metric): metric for metric in concept.metrics}
    for name in uses:
        if name in trail:
            way = " -> ".join((*trail, name))
            raise DataError(f"{concept.source}, key `uses`: {way} is a circle.", "Break it.")
        used = _pack(packs().joinpath(name, "concept.yaml"), trail)
        for split in SPLITS:
            rows[split].update(dict.fromkeys(used.examples[split]))
        for metric in used.metrics:
            metrics.setdefault((metric.suite, metric.metric), metric)
    concept = dataclasses.replace(
        concept,
        examples={split: tuple(examples) for split, examples in rows.items()},
        metrics=tuple(metrics.values()),
    )
    _check_labels(concept)
    return dataclasses.replace(concept, hash=content_hash(concept))


def _check_labels(concept: Concept) -> None:
    labels = sorted({row.label for split in SPLITS for row in concept.examples[split]})
    wanted = [
        (f"directions.{direction}.{field}", label)
        for direction, direction_spec in concept.directions.items()
        for field in ("source", "target", "retain")
        for label in getattr(direction_spec, field)
    ]
    wanted += [
        (f"metrics.{metric.metric}", label) for metric in concept.metrics for label in metric.labels
    ]
    for key, label in wanted:
        if label not in labels:
            hint = f"{did_you_mean(label, labels)} The rows have {named(labels)}.".strip()
            raise DataError(f"{concept.source}, key `{key}`: no row has the label `{label}`.", hint)
    known = sorted(metric.metric for metric in concept.metrics)
    for direction, direction_spec in concept.directions.items():
        if direction_spec.effect and direction_spec.effect not in known:
            at = f"{concept.source}, key `direction_spec.{direction}.effect`"
            hint = f"{did_you_mean(direction_spec.effect, known)} The metrics are {named(known)}.".strip()
            raise DataError(f"{at}: there is no metric `{direction_spec.effect}`.", hint)


def save_pack(concept: Concept, folder: Path) -> None:
    """Write a concept as a pack that `load_concept_file` reads back to an equal one."""
    header = {
        "name": concept.name,
        "title": concept.title,
        "description": concept.description,
        "weakens": concept.weakens,
        "directions": {name: to_plain(spec) for name, spec in concept.directions.items()},
        "settings": {name: dict(values) for name, values in concept.settings.items()},
        "metrics": [to_plain(metric) for metric in concept.metrics],
    }
    atomic_write(folder / "concept.yaml", yaml.safe_dump(header, sort_keys=False))
    for split in SPLITS:
        lines = [to_json(_plain_example(one)) + "\n" for one in concept.examples[split]]
        atomic_write(folder / f"{split}.jsonl", "".join(lines))


def _plain_example(example: Example) -> dict[str, Any]:
    """An example as a line of a pack, empty columns left out."""
    return {key: value for key, value in to_plain(example).items() if value}


def content_hash(concept: Concept) -> str:
    """SHA-256, in hexadecimal, of everything that a concept holds but where it came from."""

    def plain(value: Any) -> dict[str, Any]:
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}

    content = {key: value for key, value in plain(concept).items() if key not in ("source", "hash")}
    text = json.dumps(content, default=plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
