"""The splits of a user's examples: training, validation and test."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from retouch.concepts.concept import Example
from retouch.concepts.examples import LocatedExample
from retouch.concepts.normalization import normalized_prompt, without_punctuation
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Split

MIN_EXAMPLES = 10  # recommended for each set; with fewer, a validation split says little

NO_POSITIVE = (
    " Or give each `negative` example a `target_response`, or all of them a context (in Python)."
)

_Key = tuple[str, str]


def split_examples(examples: Sequence[LocatedExample]) -> dict[Split, tuple[Example, ...]]:
    """Split examples as their rows say, or 60 / 20 / 20 by a hash of their content alone.

    Examples that share an entity, a pair or a prompt form a unit that stays together, and so do
    near copies: prompts that differ in case, whitespace and punctuation alone. Units with
    the same labels are ordered by their hashes and cut at 60 % and 80 %; of three units each split
    gets one, and of two the test split gets none. Neither chance nor the order of the examples
    matters.
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
            if len(stratum) == 3:
                split_of[unit] = SPLITS[index]
            else:
                split_of[unit] = (
                    "train" if position < 0.6 else "validation" if position < 0.8 else "test"
                )
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for one, unit in zip(examples, units, strict=True):
        splits[one.split or split_of[unit]].append(one.example)
    return {split: tuple(chosen) for split, chosen in splits.items()}


def turns_of(example: Example) -> list[tuple[str, str]]:
    """Role and text of each turn of an example's prompt."""
    return [(turn.role, turn.content) for turn in example.prompt]


def _units(examples: Sequence[Example]) -> list[_Key]:
    """For each example the least key of those that it shares, directly or through others."""
    parent = list(range(len(examples)))  # union-find

    def root(i: int) -> int:
        while (above := parent[i]) != i:
            parent[i] = parent[above]
            i = above
        return i

    first_of: dict[Hashable, int] = {}
    for i, example in enumerate(examples):
        # Near copies include equal prompts.
        near = tuple(
            [(role, without_punctuation(text)) for role, text in normalized_prompt(example)]
        )
        keys: list[Hashable] = [("prompt", near)]
        keys += [("entity", example.entity)] if example.entity else []
        keys += [("pair", example.pair)] if example.pair else []
        for key in keys:
            if (first := first_of.setdefault(key, i)) != i:
                one, other = sorted((root(first), root(i)))
                parent[other] = one
    least: dict[int, _Key] = {}
    for i, example in enumerate(examples):
        key = _least_key(example)
        least[root(i)] = min(least.get(root(i), key), key)
    return [least[root(i)] for i in range(len(examples))]


def _least_key(example: Example) -> _Key:
    """The least of an example's own keys: an entity is less than a pair, and that than a prompt."""
    if example.entity:
        return "entity", example.entity
    return ("pair", example.pair) if example.pair else ("prompt", json.dumps(turns_of(example)))


def check_splits(
    examples: Sequence[LocatedExample],
    splits: Mapping[Split, Sequence[Example]],
    describe: Callable[[str], str],
) -> None:
    """Check that every label has examples to train and to validate on.

    Args:
        examples: all of them.
        splits: as `split_examples` divides them.
        describe: names a label's examples in an error.

    Raises:
        DataError: a label has none in one of the two splits.
    """
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
                "examples that share one stay in one split."
                + (NO_POSITIVE if label == "positive" and not count else ""),
                code="too-few-examples",
            )
