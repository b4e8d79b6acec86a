"""A user's data as a concept: from a file, from lists of prompts, or from a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept, Context, DirectionSpec, Example, MetricSpec
from retouch.concepts.examples import (
    CUSTOM_COLUMNS,
    LocatedExample,
    check_consistent,
    parse_row,
    read_located_examples,
)
from retouch.concepts.readers import (
    REQUIRED,
    SourceLocation,
    check_columns,
    describe_type,
    read_lines,
    read_table,
)
from retouch.concepts.splits import check_splits, split_examples, turns_of
from retouch.core.errors import DataError, choices
from retouch.core.types import SPLITS, Direction, Split

# The columns of an entry of `concept_from_pairs`: the list implies the label, the index the pair.
PAIR_COLUMNS = tuple(name for name in CUSTOM_COLUMNS if name not in ("label", "pair"))
LABEL_OF = {"source": "negative", "target": "positive", "retain": "retain"}
ARGUMENT_OF = {label: argument for argument, label in LABEL_OF.items()}


def concept_from_file(path: Path, context: Context | None = None) -> Concept:
    """Read a CSV, JSONL or Parquet file with the labels `positive`, `negative` and `retain`.

    The direction `raise` moves `negative` towards `positive`. Without `retain` examples the
    built-in ordinary examples that fit the model are retained. Without `positive` ones the
    `negative` prompts are moved towards their `target_response`, or towards their own counterparts
    under the context.

    Raises:
        DataError: the file is wrong, or has too few examples of a label.
    """
    examples = read_located_examples(path, custom=True)
    return _build(
        examples,
        name=path.stem,
        title=f"{path.stem}, from {path.name}",
        description=f"{len(examples)} examples of a user's file.",
        source=str(path),
        describe=lambda label: f"{path}, label `{label}`",
        context=context,
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
        list(_parse_rows(argument, entries, PAIR_COLUMNS, LABEL_OF[argument]))
        for argument, entries in (
            ("source", source),
            ("target", () if target is None else target),
            ("retain", retain),
        )
    )
    if responses is not None:
        sources = _add_responses(sources, responses)
    if target is None:
        targets = []
    elif len(sources) != len(targets):
        raise _length_mismatch(len(sources), "target", len(targets))
    for index, both in enumerate(zip(sources, targets, strict=target is not None)):
        pair = _pair_of(both)
        sources[index], targets[index] = (
            replace(one, example=replace(one.example, pair=pair)) for one in both
        )
    return _build(
        [*sources, *targets, *retained],
        name=name,
        title=f"{name}, from {len(sources)} {'prompts' if target is None else 'pairs of prompts'}",
        description=description,
        source="lists of prompts",
        describe=lambda label: f"`{ARGUMENT_OF[label]}`",
        context=context,
    )


def _add_responses(sources: Sequence[LocatedExample], responses: Any) -> list[LocatedExample]:
    """Source examples with the target responses of a list."""
    if isinstance(responses, str | Mapping) or not isinstance(responses, Iterable):
        message = f"`responses` must be a list of texts, got {describe_type(responses)}."
        raise DataError(message, "Give one for each source prompt.", code="argument-type")
    responses = list(responses)
    if len(sources) != len(responses):
        raise _length_mismatch(len(sources), "responses", len(responses))
    for i, (one, response) in enumerate(zip(sources, responses, strict=True)):
        if not isinstance(response, str) or not response.strip():
            message = f"responses[{i}] must be a text, got {response!r}."
            raise DataError(message, "Give one for each source prompt.", code="value-type")
        if one.target_response:
            message = "this entry has a `target_response`, and `responses` gives one too."
            raise one.location.error("response-twice", message, "Remove one of the two.")
    pairs = zip(sources, responses, strict=True)
    return [replace(one, target_response=response) for one, response in pairs]


def _length_mismatch(count: int, argument: str, other: int) -> DataError:
    return DataError(
        f"`source` has {count} entries and `{argument}` has {other}.",
        "Give equally many: they are paired index by index.",
        code="length-mismatch",
    )


def concept_from_dataset(
    dataset: Any, name: str, description: str, context: Context | None = None
) -> Concept:
    """Make a concept from a dataset. See `Concept.from_dataset`."""
    return _build(
        list(_parse_dataset(dataset)),
        name=name,
        title=f"{name}, from a dataset",
        description=description,
        source="a dataset",
        describe=lambda label: f"`dataset`, label `{label}`",
        context=context,
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
        located = [
            parse_row(location, {**values, "label": "negative"}, custom=True)
            for location, values in read_table(Path(prompts), CUSTOM_COLUMNS, ("prompt",))
        ]
    else:
        located = list(_parse_rows("prompts", prompts, PAIR_COLUMNS, "negative"))
    check_consistent(located)
    located = [replace(one, example=replace(one.example, label=label)) for one in located]
    return split_examples(located)


def _parse_dataset(dataset: Any) -> Iterator[LocatedExample]:
    """The rows of a dataset, or of a dataset for each split, as examples."""
    if not isinstance(dataset, Mapping):
        yield from _parse_rows("dataset", dataset, CUSTOM_COLUMNS)
        return
    for split, rows in dataset.items():
        if split not in SPLITS:
            message = f"`dataset` has the unknown split `{split}`."
            raise DataError(message, choices(str(split), "splits", SPLITS), code="split-unknown")
        known = tuple(column for column in CUSTOM_COLUMNS if column != "split")
        for one in _parse_rows(f'dataset["{split}"]', rows, known):
            yield replace(one, split=split)


def _parse_rows(
    argument: str, rows: Any, known: tuple[str, ...], label: str = ""
) -> Iterator[LocatedExample]:
    """The rows of a dataset, or the prompts of a list whose examples have the label."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        expected = "a list of prompts" if label else "a dataset"
        hint = "Give a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split."
        raise DataError(
            f"`{argument}` must be {expected}, got {describe_type(rows)}.",
            "Give texts, or mappings with `prompt`." if label else hint,
            code="argument-type",
        )
    # A label that `datasets` stores as a ClassLabel is an integer, with its name in the features.
    features = getattr(rows, "features", None) or {}
    label_name = getattr(features.get("label"), "int2str", None)
    for index, entry in enumerate(rows):
        location = SourceLocation(argument, index, "index")
        row = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(row, Mapping):
            message = f"this is {describe_type(row)}, not a text or a mapping of columns."
            hint = 'Write several turns as {"prompt": [{"role": ..., "content": ...}, ...]}.'
            raise location.error("value-type", message, hint)
        check_columns(location, row, known, ("prompt",) if label else REQUIRED)
        row = {"label": label, **row}
        if label_name is not None and isinstance(row["label"], int) and row["label"] >= 0:
            row["label"] = label_name(row["label"])
        yield parse_row(location, row, custom=True)


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
) -> Concept:
    """The concept of a user's examples; `describe` names a label's examples in an error."""
    description = description or f"{len(examples)} examples."
    _check_text("name", name)
    _check_text("description", description)
    check_consistent(examples)
    located = _add_targets(examples, elicited=context is not None)
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
    )


def _add_targets(examples: Sequence[LocatedExample], *, elicited: bool) -> list[LocatedExample]:
    """Add a `positive` counterpart of each `negative` example whose target is given or elicited.

    It has the same prompt and the `target_response`, which a counterpart that the user gives gets
    as well.
    """
    made = list(examples)
    positive = {
        (one.example.pair, one.split): i
        for i, one in enumerate(examples)
        if one.example.label == "positive"
    }
    given = any(one.target_response for one in examples)
    for i, one in enumerate(examples):
        example, response = one.example, one.target_response
        if example.label != "negative":
            continue
        at = positive.get((example.pair, one.split)) if example.pair else None
        if at is not None and response:
            if examples[at].example.response:
                message = "this row has a target response, and its counterpart has one too."
                raise one.location.error("response-twice", message, "Remove one of the two.")
            made[at] = replace(made[at], example=replace(made[at].example, response=response))
        elif at is None and (response or (elicited and not positive)):
            pair = example.pair or _pair_of([one])
            made[i] = replace(one, example=replace(example, pair=pair))
            target = replace(example, label="positive", response=response, pair=pair)
            made.append(replace(one, example=target))
        elif given and not positive:
            message = "this row has no target response, and others have one."
            hint = "Give one to every `negative` row, or a row labelled `positive` with its `pair`."
            raise one.location.error("target-missing", message, hint, "target_response")
    return made


def _pair_of(examples: Sequence[LocatedExample]) -> str:
    """The name of a pair: it depends on the prompts alone, so that the order of pairs is free."""
    prompts = [[one.example.prefill, *turns_of(one.example)] for one in examples]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


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
