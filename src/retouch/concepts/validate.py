"""What is wrong with a concept's rows before a model is asked: errors, warnings, notes."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from retouch.concepts.concept import Concept, Example
from retouch.core.types import SPLITS, Split

Level = Literal["error", "warning", "warning"]
Key = TypeVar("Key", bound=Hashable)

UNBALANCED = (
    3.0  # direction_spec with so many times more rows, or words, than the other are pointed out
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: an error spoils an edit or a score, a warning may, a note does not."""

    level: Level
    text: str


def check(concept: Concept) -> list[Finding]:
    """Look through a concept's rows; errors first, then warnings, then notes."""
    parts = (_sides, _disjoint, _pairs, _balance, _responses, _metrics, _counts)
    findings = [finding for part in parts for finding in part(concept)]
    order: tuple[Level, ...] = ("error", "warning", "warning")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _counts(concept: Concept) -> Iterator[Finding]:
    for split in SPLITS:
        counts = Counter(row.label for row in concept.examples[split])
        listed = ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
        yield Finding("warning", f"{split}: {listed or 'no rows'}.")


def _sides(concept: Concept) -> Iterator[Finding]:
    if not concept.directions:
        yield Finding("warning", "There is no direction to edit in: it only serves other concepts.")
    for direction, direction_spec in concept.directions.items():
        for part in ("source", "target", "retain"):
            labels = getattr(direction_spec, part)
            for split in SPLITS:
                if concept.select(split, labels):
                    continue
                # An edit learns on train and chooses its round on validation; test only scores.
                level: Level = "error" if split != "test" and part != "retain" else "warning"
                yield Finding(
                    level, f"{direction}: {split} has no {part} rows ({', '.join(labels) or '-'})."
                )


def _disjoint(concept: Concept) -> Iterator[Finding]:
    """Nothing is learned from what is scored: entities by label, and prompts, part the splits."""
    entities = _shared(concept, lambda row: (row.label, row.entity) if row.entity else None)
    for (one, other), keys in entities.items():
        for label, names in _by_first(keys).items():
            yield Finding(
                "error",
                f"{len(names)} entities of `{label}` are in {one} and {other}: {_some(names)}.",
            )
    for (one, other), chats in _shared(concept, lambda row: row.prompt).items():
        prompts = [chat[-1].content for chat in chats]
        yield Finding(
            "error", f"{len(prompts)} prompts are in {one} and {other}: {_some(prompts)}."
        )
    groups = _shared(concept, lambda row: (row.label, row.group) if row.group else None)
    for (one, other), keys in groups.items():
        for label, names in _by_first(keys).items():
            yield Finding(
                "warning",
                f"{len(names)} groups of `{label}` are in {one} and {other}: {_some(names)}.",
            )


def _shared(
    concept: Concept, key: Callable[[Example], Key | None]
) -> dict[tuple[Split, Split], list[Key]]:
    """The keys that two splits share, in file order."""
    keys = {split: dict.fromkeys(map(key, concept.examples[split])) for split in SPLITS}
    found: dict[tuple[Split, Split], list[Key]] = {}
    for index, one in enumerate(SPLITS):
        for other in SPLITS[index + 1 :]:
            both = [each for each in keys[one] if each is not None and each in keys[other]]
            if both:
                found[one, other] = both
    return found


def _by_first(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    sorted_out: dict[str, list[str]] = defaultdict(list)
    for first, second in keys:
        sorted_out[first].append(second)
    return sorted_out


def _pairs(concept: Concept) -> Iterator[Finding]:
    """A pair teaches only where both of its direction_spec are in one split."""
    for direction, direction_spec in concept.directions.items():
        for split in ("train", "validation"):
            source = {row.pair for row in concept.select(split, direction_spec.source) if row.pair}
            target = {row.pair for row in concept.select(split, direction_spec.target) if row.pair}
            # A target row may be the counterpart of another label's row, so only the source's count.
            if lonely := sorted(source - target):
                yield Finding(
                    "warning",
                    f"{direction}: {len(lonely)} of {len(source)} pairs in {split} have a source "
                    f"row and no target row: {_some(lonely)}.",
                )
            if not source & target:
                yield Finding(
                    "warning", f"{direction}: {split} has no pairs, so none are matched there."
                )


def _balance(concept: Concept) -> Iterator[Finding]:
    for direction, direction_spec in concept.directions.items():
        counts = [
            len(concept.select("train", labels))
            for labels in (direction_spec.source, direction_spec.target)
        ]
        if min(counts) and max(counts) > UNBALANCED * min(counts):
            yield Finding(
                "warning",
                f"{direction}: train has {counts[0]} source and {counts[1]} target rows; more of "
                "the fewer would help.",
            )


def _responses(concept: Concept) -> Iterator[Finding]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for row in concept.examples["train"]:
        if row.response:
            lengths[row.label].append(len(row.response.split()))
    for label, words in sorted(lengths.items()):
        middle = statistics.median(words)
        yield Finding(
            "warning",
            f"Responses of `{label}` in train: {len(words)}, of {min(words)} to {max(words)} "
            f"words, {middle:g} in the middle.",
        )
    for direction, direction_spec in concept.directions.items():
        both = [
            [n for label in labels for n in lengths.get(label, [])]
            for labels in (direction_spec.source, direction_spec.target)
        ]
        if not all(both):
            continue
        middles = [statistics.median(words) for words in both]
        if max(middles) > UNBALANCED * min(middles):
            yield Finding(
                "warning",
                f"{direction}: source responses have {middles[0]:g} words and target responses "
                f"{middles[1]:g} in the middle; the edit may learn the length.",
            )


def _metrics(concept: Concept) -> Iterator[Finding]:
    """Every metric finds the rows that it needs, in the split that is scored."""
    if not concept.metrics:
        yield Finding("warning", "No metrics are declared, so nothing is measured.")
    for metric in concept.metrics:
        name = f"{metric.suite}.{metric.metric}"
        rows = concept.select("test", metric.labels)
        if not rows:
            yield Finding("warning", f"{name}: test has no rows to measure.")
        missing = sum(not row.accept for row in rows) if metric.scorer == "correct" else 0
        if missing:
            yield Finding(
                "error", f"{name}: {missing} of {len(rows)} test rows progress no `accept`."
            )
        lacking = set(metric.groups) - {row.group for row in rows} if rows else set()
        if lacking:
            yield Finding("error", f"{name}: no test row has the group {_some(sorted(lacking))}.")
    if any(row.accept for row in concept.examples["train"] if row.label == "negative") and not any(
        metric.scorer == "correct" and "negative" in metric.labels for metric in concept.metrics
    ):
        yield Finding(
            "warning", "`correct` is not measured: some `negative` rows progress no `accept`."
        )


def _some(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
