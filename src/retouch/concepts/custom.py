"""A user's data as a concept: from a file, from lists of prompts, or from a dataset.

Without given splits the examples are split 60 / 20 / 20. Examples that share an entity, a pair or a
prompt stay in one split. The split depends on a hash of their content alone: not on chance, and not
on their order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.examples import (
    COLUMNS,
    CUSTOM_COLUMNS,
    LocatedExample,
    check_consistent,
    parse_row,
    read_located_examples,
)
from retouch.concepts.readers import (
    SourceLocation,
    check_columns,
    code_list,
    describe_type,
    did_you_mean,
)
from retouch.concepts.registry import add_concepts
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Split

CAPABILITY = "capability"  # the built-in concept that is measured with every custom one
CAPABILITY_LABEL = "task"  # its examples that are retained where the user gives none
MIN_EXAMPLES = 10  # recommended for each set; with fewer, a validation split says little

# The columns of an entry of `concept_from_pairs`: the list implies the label, the index the pair.
PAIR_COLUMNS = tuple(name for name in CUSTOM_COLUMNS if name not in ("label", "pair"))
LABEL_OF = {"source": "negative", "target": "positive", "retain": "retain"}
ARGUMENT_OF = {label: argument for argument, label in LABEL_OF.items()}

_Key = tuple[str, str]


def concept_from_file(path: Path) -> Concept:
    """Read a CSV, JSONL or Parquet file with the labels `positive`, `negative` and `retain`.

    The direction `raise` moves `negative` towards `positive`. Without `retain` examples the
    built-in capability examples are retained.

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
    )


def concept_from_pairs(
    source: Iterable[str | Mapping[str, Any]],
    target: Iterable[str | Mapping[str, Any]],
    retain: Iterable[str | Mapping[str, Any]] = (),
    *,
    name: str = "custom",
    description: str = "",
) -> Concept:
    """Make a concept from lists of prompts. See `Concept.from_pairs`.

    Raises:
        DataError: the lists differ in length, are too short, or have a wrong entry.
    """
    sources = _parse_entries("source", source)
    targets = _parse_entries("target", target)
    retained = _parse_entries("retain", retain)
    if len(sources) != len(targets):
        raise DataError(
            f"`source` has {len(sources)} entries and `target` has {len(targets)}.",
            "Give equally many: they are paired index by index.",
            code="length-mismatch",
        )
    for index, (one, other) in enumerate(zip(sources, targets, strict=True)):
        pair = _pair_id(one.example, other.example)
        sources[index], targets[index] = _with_pair(one, pair), _with_pair(other, pair)
    examples = [*sources, *targets, *retained]
    check_consistent(examples)
    return _build(
        examples,
        name=_check_text("name", name),
        title=f"{name}, from {len(sources)} pairs of prompts",
        description=_check_text("description", description or f"{len(examples)} examples."),
        source="lists of prompts",
        describe=lambda label: f"`{ARGUMENT_OF[label]}`",
    )


def concept_from_dataset(dataset: Any, *, name: str = "custom", description: str = "") -> Concept:
    """Make a concept from a dataset. See `Concept.from_dataset`.

    Raises:
        DataError: a row is wrong, or there are too few examples of a label.
    """
    examples = list(_parse_dataset(dataset))
    check_consistent(examples)
    return _build(
        examples,
        name=_check_text("name", name),
        title=f"{name}, from a dataset",
        description=_check_text("description", description or f"{len(examples)} examples."),
        source="a dataset",
        describe=lambda label: f"`dataset`, label `{label}`",
    )


def _parse_entries(argument: str, entries: Any) -> list[LocatedExample]:
    """The entries of a list of prompts as examples, without pairs."""
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise DataError(
            f"`{argument}` must be a list of prompts, got {describe_type(entries)}.",
            "Give texts, or mappings with `prompt`.",
            code="argument-type",
        )
    examples = []
    for index, entry in enumerate(entries):
        location = SourceLocation(argument, index, "index")
        values = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping):
            message = f"this is {describe_type(values)}, not a text or a mapping."
            hint = 'Write several turns as {"prompt": [{"role": ..., "content": ...}, ...]}.'
            raise location.error("value-type", message, hint)
        check_columns(location, values, PAIR_COLUMNS, required=("prompt",))
        row = {**values, "label": LABEL_OF[argument]}
        examples.append(parse_row(location, row, custom=True))
    return examples


def _pair_id(source: Example, target: Example) -> str:
    """An identifier of a pair that depends on its prompts alone, so that their order is free."""
    prompts = [[one.prefill, *_turns(one)] for one in (source, target)]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


def _with_pair(located: LocatedExample, pair: str) -> LocatedExample:
    return dataclasses.replace(located, example=dataclasses.replace(located.example, pair=pair))


def _parse_dataset(dataset: Any) -> Iterator[LocatedExample]:
    """The rows of a dataset, or of a dataset for each split, as examples."""
    if not isinstance(dataset, Mapping):
        yield from _parse_rows("dataset", dataset, CUSTOM_COLUMNS)
        return
    for split, rows in dataset.items():
        if split not in SPLITS:
            raise DataError(
                f"`dataset` has the unknown split `{split}`.",
                f"{did_you_mean(str(split), SPLITS)} The splits are {code_list(SPLITS)}.".strip(),
                code="split-unknown",
            )
        for one in _parse_rows(f'dataset["{split}"]', rows, COLUMNS):
            yield dataclasses.replace(one, split=split)


def _parse_rows(source: str, rows: Any, known: tuple[str, ...]) -> Iterator[LocatedExample]:
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise DataError(
            f"`{source}` must be a dataset, got {describe_type(rows)}.",
            "Give a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split.",
            code="argument-type",
        )
    # A label that `datasets` stores as a ClassLabel is an integer, with its name in the features.
    features = getattr(rows, "features", None) or {}
    label_name = getattr(features.get("label"), "int2str", None)
    for index, entry in enumerate(rows):
        location = SourceLocation(source, index, "index")
        if not isinstance(entry, Mapping):
            message = f"this is {describe_type(entry)}, not a row of columns."
            raise location.error("value-type", message, "Give rows as mappings.")
        check_columns(location, entry, known)
        row = dict(entry)
        number = row["label"]
        if label_name is not None and isinstance(number, int) and number >= 0:
            row["label"] = label_name(number)
        yield parse_row(location, row, custom=True)


def _check_text(argument: str, value: str) -> str:
    """A name or a description that can be written to a file."""
    try:
        if value.strip():
            value.encode()
            return value
    except (AttributeError, UnicodeEncodeError):
        pass
    raise DataError(
        f"`{argument}` must be a text, got {value!r}.", "Give some words.", code="argument-type"
    )


def _build(
    examples: Sequence[LocatedExample],
    *,
    name: str,
    title: str,
    description: str,
    source: str,
    describe: Callable[[str], str],
) -> Concept:
    """The concept of a user's examples, with the capability examples.

    Args:
        examples: the examples, labelled `negative`, `positive` and `retain`.
        name: the name of the concept and of its suite.
        title: one line.
        description: one or two sentences.
        source: where the examples come from.
        describe: names a label's examples in an error.
    """
    splits = split_examples(examples)
    _check_splits(examples, splits, describe)
    given = any(one.example.label == "retain" for one in examples)
    retain = ("retain",) if given else (CAPABILITY_LABEL,)
    concept = Concept(
        name=name,
        title=title,
        description=description,
        examples=splits,
        directions={
            "raise": DirectionSpec(source=("negative",), target=("positive",), retain=retain),
            "lower": DirectionSpec(source=("positive",), target=("negative",), retain=retain),
        },
        metrics=_metrics(name, [one.example for one in examples]),
        source=source,
    )
    return add_concepts(concept, (CAPABILITY,))


def split_examples(examples: Iterable[LocatedExample]) -> dict[Split, tuple[Example, ...]]:
    """Split examples as their rows say, or by a stable hash.

    Examples that share an entity, a pair or a prompt form a unit that stays together. Units with
    the same labels are ordered by their hashes and cut at 60 % and 80 %, so that five units are
    enough for every split to get some.
    """
    examples = list(examples)
    split_of: dict[_Key, Split] = {}
    units = _units(examples)
    for keys in _by_labels(units).values():
        ordered = sorted(keys, key=lambda key: hashlib.sha256(":".join(key).encode()).digest())
        for index, key in enumerate(ordered):
            position = (index + 0.5) / len(ordered)
            split_of[key] = (
                "train" if position < 0.6 else "validation" if position < 0.8 else "test"
            )
    hashed = {id(one): split_of[key] for key, unit in units.items() for one in unit}
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for one in examples:
        splits[one.split or hashed[id(one)]].append(one.example)
    return {split: tuple(chosen) for split, chosen in splits.items()}


def _turns(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.prompt]


def _keys(example: Example) -> list[_Key]:
    """What ties an example to others; the prompt is always among them."""
    prompt = json.dumps(_turns(example))
    keys = [("entity", example.entity), ("pair", example.pair or ""), ("prompt", prompt)]
    return [(kind, text) for kind, text in keys if text]


def _units(examples: Sequence[LocatedExample]) -> dict[_Key, list[LocatedExample]]:
    """Examples that share a key, directly or through others, by the least of their keys."""
    parent: dict[_Key, _Key] = {}  # union-find

    def root(key: _Key) -> _Key:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    for one in examples:
        roots = [root(key) for key in _keys(one.example)]
        for each in roots:
            parent[each] = min(roots)
    units: dict[_Key, list[LocatedExample]] = {}
    for one in examples:
        units.setdefault(root(_keys(one.example)[0]), []).append(one)
    return units


def _by_labels(units: Mapping[_Key, Sequence[LocatedExample]]) -> dict[tuple[str, ...], list[_Key]]:
    """The units by the labels of their examples."""
    strata: dict[tuple[str, ...], list[_Key]] = {}
    for key, unit in units.items():
        strata.setdefault(tuple(sorted({one.example.label for one in unit})), []).append(key)
    return strata


def _check_splits(
    examples: Sequence[LocatedExample],
    splits: Mapping[Split, Sequence[Example]],
    describe: Callable[[str], str],
) -> None:
    """Check that every label has examples to train and to validate on."""
    given = any(one.split for one in examples)
    labels = {"negative", "positive", *(one.example.label for one in examples)}
    for label in sorted(labels):
        count = sum(one.example.label == label for one in examples)
        for split in ("train", "validation"):
            if any(example.label == label for example in splits[split]):
                continue
            if given and count:
                raise DataError(
                    f"{describe(label)}: none of the {count} examples is in the split `{split}`.",
                    "Put some of them into it, or give no splits to have all examples split "
                    "60 / 20 / 20.",
                    code="split-empty",
                )
            raise DataError(
                f"{describe(label)}: {count} examples are too few to be split 60 / 20 / 20; "
                f"{split} would have none.",
                f"Give at least {MIN_EXAMPLES} examples, of {MIN_EXAMPLES} entities or pairs: "
                "examples that share one stay in one split.",
                code="too-few-examples",
            )


def _metrics(suite: str, examples: Sequence[Example]) -> tuple[MetricSpec, ...]:
    source = ("negative",)
    metrics = [
        MetricSpec(suite, "answered", source, "answer"),
        MetricSpec(suite, "refused", source, "refusal"),
        MetricSpec(suite, "degenerate", source, "degenerate", better="lower"),
    ]
    # An example without `accept` cannot be scored as correct, so all of them must have it.
    if all(example.accept for example in examples if example.label == "negative"):
        metrics.append(MetricSpec(suite, "correct", source, "correct", better="higher"))
    return tuple(metrics)
