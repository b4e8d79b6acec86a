"""A user's own file as a concept: `positive` and `negative` rows, and `retain` rows if there are.

Without a column `split` the rows are split 60 / 20 / 20 by their entity, pair or prompt: what
shares one of them stays together, and the split hangs on a hash of it, never on chance or order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.concepts.examples import Row, read_rows
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Split

CAPABILITY = "capability"  # the pack, and its label, that a concept without retain rows holds
ENOUGH = 10  # rows of a label that a split into three takes; below it a validation set says little

_Key = tuple[str, str]


def own_concept(path: Path) -> Concept:
    """Read a user's CSV, JSONL or Parquet file as a concept; `capability` is not added yet.

    Raises:
        DataError: the file is wrong, or holds too few rows of a label.
    """
    rows = read_rows(path, own=True)
    labels = {row.example.label for row in rows}
    for label, other in (("positive", "negative"), ("negative", "positive")):
        if label not in labels:
            raise DataError(
                f"{path} has no `{label}` rows, so there is nothing to contrast.",
                f"Give it at least {ENOUGH} rows labelled `{label}` beside the `{other}` ones."
                if other in labels
                else f"Give it at least {ENOUGH} rows of each, `positive` and `negative`.",
            )
    parted = split_rows(rows)
    _check_splits(path, rows, parted)
    hold = ("retain",) if "retain" in labels else (CAPABILITY,)
    return Concept(
        name=path.stem,
        title=f"{path.stem}, from {path.name}",
        description=f"{len(rows)} rows of a user's own file.",
        examples=parted,
        directions={
            "raise": DirectionSpec(source=("negative",), target=("positive",), retain=hold),
            "lower": DirectionSpec(source=("positive",), target=("negative",), retain=hold),
        },
        metrics=_metrics(path.stem, [row.example for row in rows]),
        source=str(path),
    )


def split_rows(rows: Iterable[Row]) -> dict[Split, tuple[Example, ...]]:
    """Part rows into splits: as their file says, or by a stable hash.

    Rows that share an entity, a pair or a prompt make a unit that stays together. Units that hold
    the same labels are put in the order of their hashes and cut at 60 and 80 %, so that five units
    are enough for every split to hold some.
    """
    rows = list(rows)
    homes: dict[_Key, Split] = {}
    units = _units(rows)
    for same in _by_labels(units).values():
        ordered = sorted(same, key=lambda key: hashlib.sha256(":".join(key).encode()).digest())
        for index, key in enumerate(ordered):
            at = (index + 0.5) / len(ordered)
            homes[key] = "train" if at < 0.6 else "validation" if at < 0.8 else "test"
    home = {id(row): homes[key] for key, unit in units.items() for row in unit}
    parted: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for row in rows:
        parted[row.split or home[id(row)]].append(row.example)
    return {split: tuple(examples) for split, examples in parted.items()}


def _keys(example: Example) -> list[_Key]:
    prompt = json.dumps([(turn.role, turn.content) for turn in example.prompt])
    keys = [("entity", example.entity), ("pair", example.pair or ""), ("prompt", prompt)]
    return [(kind, text) for kind, text in keys if text]


def _units(rows: list[Row]) -> dict[_Key, list[Row]]:
    """Rows that share a key, straight or through others, under the least of their keys."""
    above: dict[_Key, _Key] = {}

    def root(key: _Key) -> _Key:
        while (up := above.setdefault(key, key)) != key:
            above[key] = above[up]
            key = up
        return key

    for row in rows:
        roots = [root(key) for key in _keys(row.example)]
        for each in roots:
            above[each] = min(roots)
    units: dict[_Key, list[Row]] = {}
    for row in rows:
        units.setdefault(root(_keys(row.example)[0]), []).append(row)
    return units


def _by_labels(units: dict[_Key, list[Row]]) -> dict[tuple[str, ...], list[_Key]]:
    strata: dict[tuple[str, ...], list[_Key]] = {}
    for key, unit in units.items():
        strata.setdefault(tuple(sorted({row.example.label for row in unit})), []).append(key)
    return strata


def _check_splits(path: Path, rows: list[Row], parted: dict[Split, tuple[Example, ...]]) -> None:
    own_splits = any(row.split for row in rows)
    for label in sorted({row.example.label for row in rows}):
        count = sum(row.example.label == label for row in rows)
        for split in ("train", "validation"):
            if any(row.label == label for row in parted[split]):
                continue
            if own_splits:
                raise DataError(
                    f"{path}: no `{label}` row has the split `{split}`.",
                    f"Give some of the {count} `{label}` rows that split, or remove the column "
                    f"`split` to have the rows split 60 / 20 / 20.",
                )
            raise DataError(
                f"{path}: split 60 / 20 / 20, the {count} `{label}` rows leave {split} none.",
                f"Give at least {ENOUGH} rows of each label, of at least {ENOUGH} entities or "
                "pairs: what shares one stays in one split.",
            )


def _metrics(suite: str, rows: list[Example]) -> tuple[MetricSpec, ...]:
    source = ("negative",)
    metrics = [
        MetricSpec(suite, "answered", source, "answer"),
        MetricSpec(suite, "refused", source, "refuse"),
        MetricSpec(suite, "degenerate", source, "degenerate", better="lower"),
    ]
    # A row without `accept` cannot be scored as correct, so all of them must have it.
    if all(row.accept for row in rows if row.label == "negative"):
        metrics.append(MetricSpec(suite, "correct", source, "correct", better="higher"))
    return tuple(metrics)
