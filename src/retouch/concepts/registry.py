"""Find concepts by name or path: built-in packs, packs of other packages, a user's files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept, Example
from retouch.concepts.custom import concept_from_dataset, concept_from_file
from retouch.concepts.hub_datasets import is_saved_dataset
from retouch.concepts.pack import FILE_NAME, Folder, read_models, read_pack
from retouch.concepts.readers import READERS
from retouch.core.config import AUTO_CONCEPT
from retouch.core.errors import DataError, choices
from retouch.core.model_names import POCKET_NAME
from retouch.core.plugins import find_plugins, load_plugin
from retouch.core.types import SPLITS, Split

ENTRY_POINTS = "retouch.concepts"
# The concept of ordinary examples, and the label of those that are retained. That of pocket is what
# its two million parameters can answer.
ORDINARY = ("ordinary", "ordinary")
ORDINARY_OF_MODEL = {POCKET_NAME: ("pocket-capability", "task")}


def packs() -> Traversable:
    """The folder of the built-in packs."""
    return resources.files("retouch.concepts") / "packs"


def builtin_names() -> list[str]:
    """The names of the built-in concepts, in alphabetical order."""
    return sorted(one.name for one in packs().iterdir() if (one / FILE_NAME).is_file())


def names_for_model(model: str) -> list[str]:
    """The names of the built-in concepts for a model, in alphabetical order.

    A model that built-in concepts were written for has these alone.
    """
    models = {name: read_models(packs() / name) for name in builtin_names()}
    own = [name for name, known in models.items() if model in known]
    return own or [name for name, known in models.items() if not known]


def default_concept(model: str) -> str:
    """The name of the concept that is edited where none is given: `safety`, or the model's own."""
    own = f"{model}-safety"
    return own if own in builtin_names() else "safety"


def concept_names() -> list[str]:
    """The names of the built-in concepts, then those of entry points, each in alphabetical order.

    No entry point is imported.
    """
    builtin = builtin_names()
    return [*builtin, *sorted(find_plugins(ENTRY_POINTS, builtin))]


def load_concept(name_or_path: str) -> Concept:
    """Load a concept by its name, or a user's concept by its path.

    A name takes precedence over a path: write `./safety` for a folder of that name.

    Args:
        name_or_path: a built-in concept; the name of an entry point of the group
            `retouch.concepts`; or a path, as for `load_concept_file`.

    Raises:
        DataError: there is no such concept, its files are wrong, or its entry point fails.
    """
    return _load_named(name_or_path) or load_concept_file(name_or_path)


def concept_for_model(concept: Concept | str, model: str) -> Concept:
    """A concept as it is used on a model: checked, and with the ordinary examples if it adds them.

    Args:
        concept: a concept; a name or a path, as for `load_concept`; or `auto`, for
            `default_concept`.
        model: the name of the model, as of `models.load.model_name`.

    Raises:
        DataError: the concept is for other models, or cannot be loaded.
    """
    if isinstance(concept, str):
        concept = load_concept(default_concept(model) if concept == AUTO_CONCEPT else concept)
    _check_model(concept, model)
    if not concept.add_ordinary:
        return concept
    name, label = ORDINARY_OF_MODEL.get(model, ORDINARY)
    directions = {
        direction: dataclasses.replace(spec, retain=spec.retain or (label,))
        for direction, spec in concept.directions.items()
    }
    concept = dataclasses.replace(concept, directions=directions, add_ordinary=False)
    return add_concepts(concept, (name,))


def ordinary_examples(model: str) -> dict[Split, list[Example]]:
    """The built-in ordinary examples that fit a model, by split.

    Args:
        model: the name of the model, as of `models.load.model_name`.
    """
    name, label = ORDINARY_OF_MODEL.get(model, ORDINARY)
    concept = load_concept(name)
    return {split: concept.select(split, [label]) for split in SPLITS}


def with_builtin(concept: Concept, model: str) -> list[Concept]:
    """The concept, then the other built-in concepts for the model."""
    others = [name for name in names_for_model(model) if name != concept.name]
    return [concept, *(concept_for_model(name, model) for name in others)]


def _is_builtin(concept: Concept, builtin: Collection[str]) -> bool:
    """Whether a concept is the built-in one of its name, and not a user's."""
    return concept.name in builtin and load_concept(concept.name).hash == concept.hash


def _check_model(concept: Concept, model: str) -> None:
    """Check that a concept is for a model."""
    builtin, hint = builtin_names(), ""
    own = f"{model}-{concept.name}"
    if concept.models and model not in concept.models:
        message = f"The concept {concept.name} is for the model {' or '.join(concept.models)}."
        if concept.base_name != concept.name and concept.base_name in builtin:
            hint = f"Use `{concept.base_name}`."
        elif names := names_for_model(model):
            hint = f"The concepts for {model} are: {', '.join(names)}."
    elif own in builtin and _is_builtin(concept, builtin):
        message = f"The concept {concept.name} is not for the model {model}."
        hint = f"Use `{own}`."
    else:
        return
    raise DataError(message, hint, code="concept-model")


def load_concept_file(path: Path | str) -> Concept:
    """Load a concept from a data file, a folder of `save_to_disk`, a pack or its YAML file.

    Raises:
        DataError: there is no such file, or it is wrong.
        ConfigError: a folder of `save_to_disk` is read, and the library `datasets` is missing.
    """
    file = Path(path).expanduser()
    if file.is_dir() and is_saved_dataset(file):
        return concept_from_dataset(file, file.name, "")
    if file.is_dir():
        return _load_pack(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        return _load_pack(file.parent, file.name)
    if file.is_file() or file.suffix.lower() in READERS:
        return concept_from_file(file)
    raise DataError(
        f"There is no concept or file `{path}`.",
        f"{choices(str(path), 'concepts', concept_names())} A path must lead to a "
        f"{', '.join(READERS)} file, a pack's folder or its YAML file.",
        code="concept-unknown",
    )


def add_concepts(concept: Concept, names: Iterable[str], trail: tuple[str, ...] = ()) -> Concept:
    """Add the examples and metrics of other concepts, and check that all labels exist.

    Args:
        concept: the concept; its own metrics take precedence.
        names: the other concepts.
        trail: the concepts that led to this one by `uses`.

    Raises:
        DataError: a concept does not exist, uses itself, or a label or a metric does not exist.
    """
    examples = {split: dict.fromkeys(concept.examples[split]) for split in SPLITS}
    metrics = {(metric.suite, metric.metric): metric for metric in concept.metrics}
    for name in names:
        if name in trail:
            raise DataError(
                f"{concept.source}, key `uses`: {' -> '.join((*trail, name))} is a cycle.",
                "Remove one of them.",
                code="uses-cycle",
            )
        other = _load_named(name, trail)
        if other is None:
            raise _unknown(concept, "uses", "concept", name, concept_names())
        for split in SPLITS:
            examples[split].update(dict.fromkeys(other.examples[split]))
        for metric in other.metrics:
            metrics.setdefault((metric.suite, metric.metric), metric)
    concept = dataclasses.replace(
        concept,
        examples={split: tuple(chosen) for split, chosen in examples.items()},
        metrics=tuple(metrics.values()),
        hash="",
    )
    _check_references(concept)
    return concept


def _load_pack(folder: Folder, file_name: str = FILE_NAME, trail: tuple[str, ...] = ()) -> Concept:
    concept, uses = read_pack(folder, file_name)
    return add_concepts(concept, uses, (*trail, concept.name))


def _load_named(name: str, trail: tuple[str, ...] = ()) -> Concept | None:
    """The concept of a name, built-in or of an entry point; None where no concept has it."""
    builtin = builtin_names()
    if name in builtin:
        return _load_pack(packs() / name, trail=trail)

    def convert(value: Any) -> Concept:
        """The concept of a folder that an entry point names, or that its function returns."""
        if callable(value) and not isinstance(value, Traversable):
            value = value()
        folder = Path(value) if isinstance(value, str | os.PathLike) else value
        if not isinstance(folder, Traversable):
            raise TypeError(f"{value!r} is no path")
        if not (folder / FILE_NAME).is_file():
            raise FileNotFoundError(f"there is no {FILE_NAME} in {folder}")
        concept = _load_pack(folder, trail=trail)
        if concept.name != name:
            raise ValueError(f"its {FILE_NAME} has the name `{concept.name}`")
        return concept

    plugin = find_plugins(ENTRY_POINTS, builtin).get(name)
    if plugin is None:
        return None
    return load_plugin(plugin, "concept", convert, DataError, "concept-not-loaded")


def _check_references(concept: Concept) -> None:
    """Check that what directions, metrics and settings refer to exists.

    Settings name installed concepts alone, as `uses` does: a pack has no say in which files of its
    user are read.
    """
    labels = {example.label for split in SPLITS for example in concept.examples[split]}
    metrics = {metric.metric for metric in concept.metrics}
    references = [(f"metrics.{metric.metric}", metric.labels) for metric in concept.metrics]
    for direction, spec in concept.directions.items():
        for field in ("source", "target", "retain"):
            references.append((f"directions.{direction}.{field}", getattr(spec, field)))
        if spec.effect and spec.effect not in metrics:
            key = f"directions.{direction}.effect"
            raise _unknown(concept, key, "metric", spec.effect, metrics)
        spec.check_target(f"{concept.source}, key `directions.{direction}.")
    for key, names in references:
        for name in names:
            if name not in labels:
                raise _unknown(concept, key, "label", name, labels)
    for direction, settings in concept.settings.items():
        for name in settings.get("data", {}).get("retain_concepts", ()):
            if name not in (installed := concept_names()):
                key = f"settings.{direction}.data.retain_concepts"
                raise _unknown(concept, key, "concept", name, installed)


def _unknown(concept: Concept, key: str, noun: str, word: str, known: Collection[str]) -> DataError:
    """The error for a key that names a concept, a label or a metric that does not exist."""
    return DataError(
        f"{concept.source}, key `{key}`: there is no {noun} `{word}`.",
        choices(word, f"{noun}s", sorted(known)),
        code=f"{noun}-unknown",
    )
