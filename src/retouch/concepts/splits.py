"""The splits of a user's examples: training, validation and test."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from retouch.concepts.concept import Example
from retouch.concepts.examples import LocatedExample
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Split

MIN_EXAMPLES = 10  # recommended for each set; with fewer, a validation split says little

NO_POSITIVE = (
    " Or give each `negative` example a `target_response`, or all of them a context (in Python)."
)

_Key = tuple[str, str]


def split_examples(examples: Sequence[LocatedExample]) -> dict[Split, tuple[Example, ...]]:
    """Split examples as their rows say, or 60 / 20 / 20 by a hash of their content alone.

    Examples that share an entity, a pair or a prompt form a unit that stays together. Units with
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
    parent: dict[_Key, _Key] = {}  # union-find

    def root(key: _Key) -> _Key:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    prompts: list[_Key] = []
    for example in examples:
        prompts.append(("prompt", json.dumps(turns_of(example))))
        keys = [("entity", example.entity), ("pair", example.pair or ""), prompts[-1]]
        roots = [root(key) for key in keys if key[1]]
        for each in roots:
            parent[each] = min(roots)
    return [root(prompt) for prompt in prompts]


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
