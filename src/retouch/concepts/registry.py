"""Find concepts by name or path: built-in packs, packs of other packages, a user's files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path

from retouch.concepts.concept import Concept
from retouch.concepts.pack import FILE_NAME, Folder, read_pack
from retouch.concepts.readers import READERS, code_list, did_you_mean
from retouch.core.errors import DataError
from retouch.core.types import SPLITS

ENTRY_POINTS = "retouch.concepts"


def packs() -> Traversable:
    """The folder of the built-in packs."""
    return resources.files("retouch.concepts") / "packs"


def builtin_names() -> list[str]:
    """The names of the built-in concepts, in alphabetical order."""
    if not packs().is_dir():
        return []
    return sorted(one.name for one in packs().iterdir() if (one / FILE_NAME).is_file())


def concept_names() -> list[str]:
    """The names of the built-in concepts, then those of entry points, each in alphabetical order.

    No entry point is imported.
    """
    return [*builtin_names(), *sorted(_plugins())]


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


def load_concept_file(path: Path | str) -> Concept:
    """Load a concept from a CSV, JSONL or Parquet file, a pack's folder or its YAML file.

    Raises:
        DataError: there is no such file, or it is wrong.
    """
    # `custom` adds built-in examples to a user's, so it imports this module.
    from retouch.concepts.custom import concept_from_file

    file = Path(path).expanduser()
    if file.is_dir():
        return _load_pack(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        return _load_pack(file.parent, file.name)
    if file.is_file() or file.suffix.lower() in READERS:
        return concept_from_file(file)
    names = concept_names()
    raise DataError(
        f"There is no concept or file `{path}`.",
        f"{did_you_mean(str(path), names)} The concepts are {code_list(names)}. A path must lead "
        f"to a {', '.join(READERS)} file, a pack's folder or its YAML file.".strip(),
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
            known = concept_names()
            raise DataError(
                f"{concept.source}, key `uses`: there is no concept `{name}`.",
                f"{did_you_mean(name, known)} The concepts are {code_list(known)}.".strip(),
                code="concept-unknown",
            )
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
    _check_labels(concept)
    _check_effects(concept)
    return concept


def _load_pack(folder: Folder, file_name: str = FILE_NAME, trail: tuple[str, ...] = ()) -> Concept:
    concept, uses = read_pack(folder, file_name)
    return add_concepts(concept, uses, (*trail, concept.name))


def _load_named(name: str, trail: tuple[str, ...] = ()) -> Concept | None:
    """The concept of a name, built-in or of an entry point; None where no concept has it."""
    if name in builtin_names():
        return _load_pack(packs() / name, trail=trail)
    plugin = _plugins().get(name)
    if plugin is None:
        return None
    concept = _load_pack(_plugin_folder(plugin), trail=trail)
    if concept.name != name:
        raise _plugin_error(plugin, f"its {FILE_NAME} has the name `{concept.name}`")
    return concept


def _plugins() -> dict[str, EntryPoint]:
    """The entry points by name, without those that have the name of a built-in concept."""
    builtin = builtin_names()
    found = entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in found if point.name not in builtin}


def _plugin_folder(point: EntryPoint) -> Folder:
    """The folder that an entry point names, or that its function returns."""
    try:
        value = point.load()
        if callable(value) and not isinstance(value, Traversable):
            value = value()
    except Exception as error:  # importing foreign code can raise anything
        raise _plugin_error(point, f"{type(error).__name__}: {error}") from error
    if isinstance(value, str | os.PathLike):
        value = Path(value)
    if not isinstance(value, Traversable):
        raise _plugin_error(point, f"it gives {value!r}, which is no path")
    if not (value / FILE_NAME).is_file():
        raise _plugin_error(point, f"there is no {FILE_NAME} in {value}")
    return value


def _plugin_error(point: EntryPoint, problem: str) -> DataError:
    return DataError(
        f"The concept `{point.name}` (entry point {point.value}) cannot be loaded: {problem}.",
        "Update or uninstall the package that provides it.",
        code="concept-not-loaded",
    )


def _check_labels(concept: Concept) -> None:
    """Check that every label of a direction or a metric is the label of an example."""
    labels = sorted({example.label for split in SPLITS for example in concept.examples[split]})
    references = [
        (f"directions.{direction}.{field}", label)
        for direction, spec in concept.directions.items()
        for field in ("source", "target", "retain")
        for label in getattr(spec, field)
    ]
    references += [
        (f"metrics.{metric.metric}", label) for metric in concept.metrics for label in metric.labels
    ]
    for key, label in references:
        if label not in labels:
            raise DataError(
                f"{concept.source}, key `{key}`: no example has the label `{label}`.",
                f"{did_you_mean(label, labels)} The labels are {code_list(labels)}.".strip(),
                code="label-unknown",
            )


def _check_effects(concept: Concept) -> None:
    """Check that the effect of every direction is a metric."""
    known = sorted(metric.metric for metric in concept.metrics)
    for direction, spec in concept.directions.items():
        if spec.effect and spec.effect not in known:
            raise DataError(
                f"{concept.source}, key `directions.{direction}.effect`: there is no metric "
                f"`{spec.effect}`.",
                f"{did_you_mean(spec.effect, known)} The metrics are {code_list(known)}.".strip(),
                code="metric-unknown",
            )
