"""Check a concept's examples before an edit: errors, warnings, and counts for information."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from retouch.concepts.concept import Concept, Example
from retouch.core.finding import LEVELS, Finding, Level
from retouch.core.types import SPLITS, Split

Key = TypeVar("Key", bound=Hashable)

MAX_RATIO = 3.0  # a larger ratio of the numbers, or of the lengths, of examples gives a warning


def validate(concept: Concept) -> list[Finding]:
    """Check a concept's examples, directions and metrics.

    Returns:
        The findings; errors first, then warnings, then information.
    """
    checks = (
        _check_directions,
        _check_splits,
        _check_pairs,
        _check_balance,
        _check_responses,
        _check_metrics,
        _count_examples,
    )
    findings = [finding for check in checks for finding in check(concept)]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _count_examples(concept: Concept) -> Iterator[Finding]:
    for split in SPLITS:
        counts = Counter(example.label for example in concept.examples[split])
        listed = ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
        yield Finding("ok", "examples", f"{split}: {listed or 'no examples'}.")


def _check_directions(concept: Concept) -> Iterator[Finding]:
    """Every set of every direction has examples."""
    if not concept.directions:
        yield Finding(
            "ok",
            "no-directions",
            "There are no directions: the concept only serves other concepts.",
        )
    for direction, spec in concept.directions.items():
        for name in ("source", "target", "retain"):
            labels = getattr(spec, name)
            for split in SPLITS:
                if concept.select(split, labels):
                    continue
                # Training and checkpoint selection fail without them; the test split only scores.
                level: Level = "error" if split != "test" and name != "retain" else "warning"
                yield Finding(
                    level,
                    "examples-missing",
                    f"{direction}: {split} has no {name} examples ({', '.join(labels) or '-'}).",
                    f"Add examples with these labels to {split}.",
                )


def _check_splits(concept: Concept) -> Iterator[Finding]:
    """The splits share no prompt, and within a label no entity; a shared group is allowed."""
    hint = "Move the examples that share one into the same split."
    entities = _shared(concept, lambda one: (one.label, one.entity) if one.entity else None)
    for (first, second), keys in entities.items():
        for label, names in _by_label(keys).items():
            message = (
                f"{len(names)} entities of `{label}` are in both {first} and {second}: "
                f"{_first_few(names)}."
            )
            yield Finding("error", "entity-shared", message, hint)
    for (first, second), prompts in _shared(concept, lambda one: one.prompt).items():
        texts = [prompt[-1].content for prompt in prompts]
        message = f"{len(texts)} prompts are in both {first} and {second}: {_first_few(texts)}."
        yield Finding("error", "prompt-shared", message, hint)
    groups = _shared(concept, lambda one: (one.label, one.group) if one.group else None)
    for (first, second), keys in groups.items():
        for label, names in _by_label(keys).items():
            yield Finding(
                "ok",
                "group-shared",
                f"{len(names)} groups of `{label}` are in both {first} and {second}: "
                f"{_first_few(names)}.",
            )


def _shared(
    concept: Concept, key: Callable[[Example], Key | None]
) -> dict[tuple[Split, Split], list[Key]]:
    """The keys that two splits share, in file order."""
    keys = {split: dict.fromkeys(map(key, concept.examples[split])) for split in SPLITS}
    shared: dict[tuple[Split, Split], list[Key]] = {}
    for index, first in enumerate(SPLITS):
        for second in SPLITS[index + 1 :]:
            both = [each for each in keys[first] if each is not None and each in keys[second]]
            if both:
                shared[first, second] = both
    return shared


def _by_label(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for label, name in keys:
        names[label].append(name)
    return names


def _check_pairs(concept: Concept) -> Iterator[Finding]:
    """Every source example with a pair has its target counterpart in the same split."""
    for direction, spec in concept.directions.items():
        for split in ("train", "validation"):
            source = {one.pair for one in concept.select(split, spec.source) if one.pair}
            target = {one.pair for one in concept.select(split, spec.target) if one.pair}
            # Target examples may be counterparts of other labels, so only the source's count.
            if missing := sorted(source - target):
                yield Finding(
                    "warning",
                    "pair-incomplete",
                    f"{direction}: {len(missing)} of {len(source)} pairs in {split} have a source "
                    f"example and no target example: {_first_few(missing)}.",
                    "Add the target examples, in the same split.",
                )
            if not source & target:
                yield Finding(
                    "ok",
                    "no-pairs",
                    f"{direction}: {split} has no pairs, so no counterparts are matched.",
                )


def _check_balance(concept: Concept) -> Iterator[Finding]:
    """Source and target have similar numbers of training examples."""
    for direction, spec in concept.directions.items():
        counts = [len(concept.select("train", labels)) for labels in (spec.source, spec.target)]
        if min(counts) and max(counts) > MAX_RATIO * min(counts):
            yield Finding(
                "warning",
                "unbalanced",
                f"{direction}: train has {counts[0]} source and {counts[1]} target examples.",
                "Add examples to the smaller set.",
            )


def _check_responses(concept: Concept) -> Iterator[Finding]:
    """Given responses of source and target have similar lengths."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for example in concept.examples["train"]:
        if example.response:
            lengths[example.label].append(len(example.response.split()))
    for label, words in sorted(lengths.items()):
        yield Finding(
            "ok",
            "response-lengths",
            f"Responses of `{label}` in train: {len(words)}, of {min(words)} to {max(words)} "
            f"words, median {statistics.median(words):g}.",
        )
    for direction, spec in concept.directions.items():
        both = [
            [n for label in labels for n in lengths.get(label, [])]
            for labels in (spec.source, spec.target)
        ]
        if not all(both):
            continue
        medians = [statistics.median(words) for words in both]
        if max(medians) > MAX_RATIO * min(medians):
            yield Finding(
                "warning",
                "response-lengths-differ",
                f"{direction}: the median length is {medians[0]:g} words for source responses and "
                f"{medians[1]:g} for target responses.",
                "Give responses of similar lengths; otherwise the edit may learn the length.",
            )


def _check_metrics(concept: Concept) -> Iterator[Finding]:
    """Every metric has the examples that it needs in the test split."""
    if not concept.metrics:
        yield Finding(
            "warning", "no-metrics", "There are no metrics, so nothing is measured.", "Add some."
        )
    for metric in concept.metrics:
        name = f"{metric.suite}.{metric.metric}"
        examples = concept.select("test", metric.labels)
        if not examples:
            yield Finding(
                "warning",
                "metric-examples-missing",
                f"{name}: test has no examples to measure.",
                f"Add examples labelled {', '.join(metric.labels) or '-'}.",
            )
        missing = sum(not one.accept for one in examples) if metric.scorer == "correct" else 0
        if missing:
            yield Finding(
                "error",
                "accept-missing",
                f"{name}: {missing} of {len(examples)} test examples have no `accept`.",
                "Give each of them the phrases that a correct response contains.",
            )
        absent = set(metric.groups) - {one.group for one in examples} if examples else set()
        if absent:
            yield Finding(
                "error",
                "group-missing",
                f"{name}: no test example has the group {_first_few(sorted(absent))}.",
                "Set `group` on the examples, or correct the metric's `groups`.",
            )
    scored = any(one.scorer == "correct" and "negative" in one.labels for one in concept.metrics)
    if not scored and any(one.accept for one in concept.select("train", ["negative"])):
        yield Finding(
            "warning",
            "correct-not-measured",
            "`correct` is not measured: some `negative` examples have no `accept`.",
            "Give all of them the phrases that a correct response contains.",
        )


def _first_few(names: list[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(f"`{name}`" for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed
