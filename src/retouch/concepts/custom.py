"""A user's data as a concept: from a file, from lists of prompts, or from a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retouch.concepts.columns import ColumnMapper
from retouch.concepts.concept import Concept, Context, DirectionSpec, Example, MetricSpec
from retouch.concepts.consistency import check_consistent, check_contradictions
from retouch.concepts.example_files import finish_mapping, paused_collection, read_user_examples
from retouch.concepts.examples import CUSTOM_COLUMNS, LocatedExample, parse_row
from retouch.concepts.hub_datasets import load_dataset
from retouch.concepts.location import SourceLocation, describe_type
from retouch.concepts.readers import check_columns, read_lines, read_table
from retouch.concepts.splits import check_splits, split_examples
from retouch.concepts.targets import add_responses, add_targets, length_mismatch, pair_by_index
from retouch.core.errors import DataError, choices
from retouch.core.finding import Finding
from retouch.core.types import SPLITS, Direction, Split

# The columns of an entry of `concept_from_pairs`: the list implies the label, the index the pair.
PAIR_COLUMNS = tuple(name for name in CUSTOM_COLUMNS if name not in ("label", "pair"))
LABEL_OF = {"source": "negative", "target": "positive", "retain": "retain"}
ARGUMENT_OF = {label: argument for argument, label in LABEL_OF.items()}


@paused_collection()
def concept_from_file(
    path: Path, context: Context | None = None, columns: Mapping[str, str] | None = None
) -> Concept:
    """Read a file with the labels `positive`, `negative` and `retain`, or of a published format.

    The direction `raise` moves `negative` towards `positive`. Without `retain` examples the
    built-in ordinary examples that fit the model are retained. Without `positive` ones the
    `negative` prompts are moved towards their `target_response`, or towards their own counterparts
    under the context.

    Raises:
        DataError: the file is wrong, or has too few examples of a label.
    """
    examples, notes = read_user_examples(path, columns)
    return _build(
        examples,
        name=path.stem,
        title=f"{path.stem}, from {path.name}",
        description=f"{len(examples)} examples of a user's file.",
        source=str(path),
        describe=lambda label: f"{path}, label `{label}`",
        context=context,
        notes=notes,
    )


def concept_from_pairs(
    source: Any,
    target: Any,
    retain: Any,
    name: str,
    description: str,
    responses: Any = None,
    context: Context | None = None,
) -> Concept:
    """Make a concept from lists of prompts. See `Concept.from_pairs`."""
    sources, targets, retained = (
        list(_parse_entries(argument, entries, LABEL_OF[argument]))
        for argument, entries in (
            ("source", source),
            ("target", () if target is None else target),
            ("retain", retain),
        )
    )
    if responses is not None:
        sources = add_responses(sources, responses)
    if target is not None and len(sources) != len(targets):
        raise length_mismatch(len(sources), "target", len(targets))
    sources, targets = pair_by_index(sources, targets)
    check_consistent([*sources, *targets, *retained])
    return _build(
        [*sources, *targets, *retained],
        name=name,
        title=f"{name}, from {len(sources)} {'prompts' if target is None else 'pairs of prompts'}",
        description=description,
        source="lists of prompts",
        describe=lambda label: f"`{ARGUMENT_OF[label]}`",
        context=context,
    )


@paused_collection()
def concept_from_dataset(
    dataset: Any,
    name: str,
    description: str,
    context: Context | None = None,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Concept:
    """Make a concept from a dataset. See `Concept.from_dataset`."""
    if isinstance(dataset, str | Path):
        dataset = load_dataset(str(dataset), config_name, split, revision)
    elif config_name or revision:
        message = "`config_name` and `revision` are for a dataset that is loaded by its name."
        raise DataError(message, "Leave them out.", code="argument-type")
    if split is not None and isinstance(dataset, Mapping):
        if split not in dataset:
            message = f"`dataset` has no split `{split}`."
            raise DataError(message, choices(split, "splits", dataset), code="split-unknown")
        dataset = dataset[split]
    mapper = ColumnMapper(columns)
    examples, notes = finish_mapping(mapper, list(_parse_dataset(dataset, mapper)))
    return _build(
        examples,
        name=name,
        title=f"{name}, from a dataset",
        description=description,
        source="a dataset",
        describe=lambda label: f"`dataset`, label `{label}`",
        context=context,
        notes=notes,
    )


def read_prompts(
    prompts: Path | str | Iterable[Any], label: str
) -> dict[Split, tuple[Example, ...]]:
    """Read prompts alone, as examples of one label, and split them.

    Args:
        prompts: a text file with one prompt on each line; a CSV, JSONL or Parquet file with the
            column `prompt` and, optionally, others of a concept file; or a list of texts and
            mappings, as for `Concept.from_pairs`.
        label: the label of the examples.

    Raises:
        DataError: the file or an entry is wrong, or there are too few to be split.
    """
    if isinstance(prompts, Path | str) and Path(prompts).suffix.lower() == ".txt":
        located = [
            parse_row(location, {"prompt": line, "label": "negative"}, custom=True)
            for location, line in read_lines(Path(prompts))
        ]
    elif isinstance(prompts, Path | str):
        mapper = ColumnMapper(required=("prompt",))
        located = [
            parse_row(location, {**mapper.map(location, values), "label": "negative"}, custom=True)
            for location, values in read_table(Path(prompts), mapper.check, mapper.lists)
        ]
    else:
        located = list(_parse_entries("prompts", prompts, "negative"))
    check_consistent(located)
    located = [replace(one, example=replace(one.example, label=label)) for one in located]
    return split_examples(located)


def _parse_dataset(dataset: Any, mapper: ColumnMapper) -> Iterator[LocatedExample]:
    """The rows of a dataset, or of a dataset for each split, as examples."""
    if not isinstance(dataset, Mapping):
        yield from _parse_mapped("dataset", dataset, mapper)
        return
    for key, rows in dataset.items():
        split = mapper.split_name(str(key))
        if split not in SPLITS:
            message = f"`dataset` has the unknown split `{key}`."
            hint = f"{choices(str(key), 'splits', SPLITS)} To use one split alone, give `split`."
            raise DataError(message, hint, code="split-unknown")
        for one in _parse_mapped(f'dataset["{key}"]', rows, mapper):
            if one.split:
                message = "the row has a `split`, and the dataset is divided already."
                raise one.location.error("column-unknown", message, "Map the column to nothing.")
            yield replace(one, split=split)


def _parse_mapped(argument: str, rows: Any, mapper: ColumnMapper) -> Iterator[LocatedExample]:
    """The rows of a dataset as examples."""
    # A label that `datasets` stores as a ClassLabel is an integer, with its name in the features.
    column = mapper.original("label")
    label_name = getattr((getattr(rows, "features", None) or {}).get(column), "int2str", None)
    hint = "Give a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split."
    for location, entry in _entries(argument, rows, "a dataset", hint):
        if not isinstance(entry, Mapping):
            message = f"this is {describe_type(entry)}, not a mapping of columns."
            raise location.error("value-type", message, hint)
        number = entry.get(column)
        if label_name is not None and isinstance(number, int) and number >= 0:
            entry = {**entry, column: label_name(number)}
        yield parse_row(location, mapper.map(location, entry), custom=True)


def _parse_entries(argument: str, entries: Any, label: str) -> Iterator[LocatedExample]:
    """The prompts of a list, whose examples have the label."""
    hint = "Give texts, or mappings with `prompt`."
    for location, entry in _entries(argument, entries, "a list of prompts", hint):
        row = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(row, Mapping):
            message = f"this is {describe_type(row)}, not a text or a mapping of columns."
            hint = 'Write several turns as {"prompt": [{"role": ..., "content": ...}, ...]}.'
            raise location.error("value-type", message, hint)
        check_columns(location, row, PAIR_COLUMNS, ("prompt",))
        yield parse_row(location, {"label": label, **row}, custom=True)


def _entries(
    argument: str, values: Any, expected: str, hint: str
) -> Iterator[tuple[SourceLocation, Any]]:
    """The entries of a list or a dataset, each with its index."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        message = f"`{argument}` must be {expected}, got {describe_type(values)}."
        raise DataError(message, hint, code="argument-type")
    for index, entry in enumerate(values):
        yield SourceLocation(argument, index, "index"), entry


def _check_text(argument: str, value: str) -> None:
    """Check that a name or a description can be written to a file."""
    try:
        if value.strip() and value.encode():
            return
    except (AttributeError, UnicodeEncodeError):
        pass
    message = f"`{argument}` must be a text, got {value!r}."
    raise DataError(message, "Give some words.", code="argument-type")


def _build(
    examples: Sequence[LocatedExample],
    *,
    name: str,
    title: str,
    description: str,
    source: str,
    describe: Callable[[str], str],
    context: Any,
    notes: Sequence[Finding] = (),
) -> Concept:
    """The concept of a user's examples; `describe` names a label's examples in an error."""
    description = description or f"{len(examples)} examples."
    _check_text("name", name)
    _check_text("description", description)
    located = add_targets(examples, elicited=context is not None)
    check_contradictions(located, elicited=context is not None)
    splits = split_examples(located)
    check_splits(located, splits, describe)
    given = any(one.example.label == "retain" for one in examples)
    retain = ("retain",) if given else ()
    raised = DirectionSpec(("negative",), ("positive",), retain, context=context)
    if context is not None and not isinstance(context, Context):
        message = f"`context` must be a `Context`, got {describe_type(context)}."
        hint = 'Write `Context(system="...")`, for example.'
        raise DataError(message, hint, code="argument-type")
    raised.check_target(f"{source}, `")
    directions: dict[Direction, DirectionSpec] = {"raise": raised}
    # Towards a given or an elicited target there is one way; the reverse has no target.
    if context is None and len(located) == len(examples):
        directions["lower"] = DirectionSpec(("positive",), ("negative",), retain)
    return Concept(
        name=name,
        title=title,
        description=description,
        examples=splits,
        directions=directions,
        # Which ordinary examples fit depends on the model, which is not known here.
        add_ordinary=True,
        # Of two examples none is left to measure on.
        metrics=_metrics(name, examples)
        if any(one.label == "negative" for one in splits["test"])
        else (),
        source=source,
        notes=tuple(notes),
    )


def _metrics(suite: str, examples: Sequence[LocatedExample]) -> tuple[MetricSpec, ...]:
    source = ("negative",)
    metrics = [
        MetricSpec(suite, "answered", source, "answer"),
        MetricSpec(suite, "refused", source, "refusal"),
        MetricSpec(suite, "degenerate", source, "degenerate", better="lower"),
    ]
    # An example without `accept` cannot be scored as correct, so all of them must have it.
    if all(one.example.accept for one in examples if one.example.label == "negative"):
        metrics.append(MetricSpec(suite, "correct", source, "correct", better="higher"))
    return tuple(metrics)
