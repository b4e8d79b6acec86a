"""A user's data as a concept: from a file, from lists of prompts, or from a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from retouch.concepts.readers import REQUIRED, SourceLocation, check_columns, describe_type
from retouch.concepts.registry import add_concepts
from retouch.core.errors import DataError, choices
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
    source: Any, target: Any, retain: Any, name: str, description: str
) -> Concept:
    """Make a concept from lists of prompts. See `Concept.from_pairs`."""
    sources, targets, retained = (
        list(_parse_rows(argument, entries, PAIR_COLUMNS, LABEL_OF[argument]))
        for argument, entries in (("source", source), ("target", target), ("retain", retain))
    )
    if len(sources) != len(targets):
        raise DataError(
            f"`source` has {len(sources)} entries and `target` has {len(targets)}.",
            "Give equally many: they are paired index by index.",
            code="length-mismatch",
        )
    for index, both in enumerate(zip(sources, targets, strict=True)):
        # It depends on the prompts alone, so that the order of the pairs is free.
        prompts = [[one.example.prefill, *_turns(one.example)] for one in both]
        pair = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
        sources[index], targets[index] = (
            replace(one, example=replace(one.example, pair=pair)) for one in both
        )
    return _build(
        [*sources, *targets, *retained],
        name=name,
        title=f"{name}, from {len(sources)} pairs of prompts",
        description=description,
        source="lists of prompts",
        describe=lambda label: f"`{ARGUMENT_OF[label]}`",
    )


def concept_from_dataset(dataset: Any, name: str, description: str) -> Concept:
    """Make a concept from a dataset. See `Concept.from_dataset`."""
    return _build(
        list(_parse_dataset(dataset)),
        name=name,
        title=f"{name}, from a dataset",
        description=description,
        source="a dataset",
        describe=lambda label: f"`dataset`, label `{label}`",
    )


def _parse_dataset(dataset: Any) -> Iterator[LocatedExample]:
    """The rows of a dataset, or of a dataset for each split, as examples."""
    if not isinstance(dataset, Mapping):
        yield from _parse_rows("dataset", dataset, CUSTOM_COLUMNS)
        return
    for split, rows in dataset.items():
        if split not in SPLITS:
            message = f"`dataset` has the unknown split `{split}`."
            raise DataError(message, choices(str(split), "splits", SPLITS), code="split-unknown")
        for one in _parse_rows(f'dataset["{split}"]', rows, COLUMNS):
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
) -> Concept:
    """The concept of a user's examples; `describe` names a label's examples in an error."""
    description = description or f"{len(examples)} examples."
    _check_text("name", name)
    _check_text("description", description)
    check_consistent(examples)
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
        metrics=_metrics(name, examples),
        source=source,
    )
    return add_concepts(concept, (CAPABILITY,))


def split_examples(examples: Sequence[LocatedExample]) -> dict[Split, tuple[Example, ...]]:
    """Split examples as their rows say, or 60 / 20 / 20 by a hash of their content alone.

    Examples that share an entity, a pair or a prompt form a unit that stays together. Units with
    the same labels are ordered by their hashes and cut at 60 % and 80 %, so that five units are
    enough for every split to get some. Neither chance nor the order of the examples matters.
    """
    units = _units([one.example for one in examples])
    labels: dict[_Key, set[str]] = defaultdict(set)
    for one, unit in zip(examples, units, strict=True):
        labels[unit].add(one.example.label)
    strata: dict[frozenset[str], list[_Key]] = defaultdict(list)
    for unit, names in labels.items():
        strata[frozenset(names)].append(unit)
    split_of: dict[_Key, Split] = {}
    for stratum in strata.values():
        stratum.sort(key=lambda unit: hashlib.sha256(":".join(unit).encode()).digest())
        for index, unit in enumerate(stratum):
            position = (index + 0.5) / len(stratum)
            split_of[unit] = (
                "train" if position < 0.6 else "validation" if position < 0.8 else "test"
            )
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for one, unit in zip(examples, units, strict=True):
        splits[one.split or split_of[unit]].append(one.example)
    return {split: tuple(chosen) for split, chosen in splits.items()}


def _turns(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.prompt]


def _units(examples: Sequence[Example]) -> list[_Key]:
    """For each example the least key of those that it shares, directly or through others."""
    parent: dict[_Key, _Key] = {}  # union-find

    def root(key: _Key) -> _Key:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    prompts: list[_Key] = []
    for example in examples:
        prompts.append(("prompt", json.dumps(_turns(example))))
        keys = [("entity", example.entity), ("pair", example.pair or ""), prompts[-1]]
        roots = [root(key) for key in keys if key[1]]
        for each in roots:
            parent[each] = min(roots)
    return [root(prompt) for prompt in prompts]


def _check_splits(
    examples: Sequence[LocatedExample],
    splits: Mapping[Split, Sequence[Example]],
    describe: Callable[[str], str],
) -> None:
    """Check that every label has examples to train and to validate on."""
    given = any(one.split for one in examples)
    for label in sorted({"negative", "positive", *(one.example.label for one in examples)}):
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
