"""Check a concept's examples before an edit: errors, warnings, and counts for information."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import combinations
from operator import attrgetter
from statistics import median

from retouch.concepts.concept import Concept, Example
from retouch.core.finding import LEVELS, Finding, Level
from retouch.core.types import SPLITS, Direction, Split

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
    """Every set of every direction has examples; source and target have similar numbers."""
    if not concept.directions:
        message = "There are no directions: the concept only serves other concepts."
        yield Finding("ok", "no-directions", message)
    for direction, spec in concept.directions.items():
        for name in ("source", "target", "retain"):
            labels = getattr(spec, name)
            if name == "retain" and not labels and concept.add_ordinary:
                continue
            for split in SPLITS:
                if concept.select(split, labels):
                    continue
                if name == "target" and not labels and spec.context:
                    continue  # the source examples are their own counterparts
                # Training and checkpoint selection fail without them; the test split only scores.
                level: Level = "error" if split != "test" and name != "retain" else "warning"
                message = (
                    f"{direction}: {split} has no {name} examples ({', '.join(labels) or '-'})."
                )
                hint = f"Add examples with these labels to {split}."
                yield Finding(level, "examples-missing", message, hint)
        counts = [len(concept.select("train", labels)) for labels in (spec.source, spec.target)]
        if min(counts) and max(counts) > MAX_RATIO * min(counts):
            message = f"{direction}: train has {counts[0]} source and {counts[1]} target examples."
            yield Finding("warning", "unbalanced", message, "Add examples to the smaller set.")


def _check_splits(concept: Concept) -> Iterator[Finding]:
    """The splits share no prompt, and within a label no entity; a shared group is allowed."""
    fields: tuple[tuple[str, str, Level], ...] = (
        ("entity", "entities", "error"),
        ("group", "groups", "ok"),
    )
    hint = "Move the examples that share one into the same split."
    for splits in combinations(SPLITS, 2):
        where = f"are in both {splits[0]} and {splits[1]}"
        for field, plural, level in fields:
            by_label: dict[str, list[str]] = defaultdict(list)
            for one in _shared(concept, splits, attrgetter("label", field)):
                if name := getattr(one, field):
                    by_label[one.label].append(name)
            for label, names in by_label.items():
                message = f"{len(names)} {plural} of `{label}` {where}: {_first_few(names)}."
                yield Finding(level, f"{field}-shared", message, hint if level == "error" else "")
        same = _shared(concept, splits, lambda one: one.prompt or one.prefill)
        prompts = [one.last_turn for one in same]
        if prompts:
            message = f"{len(prompts)} prompts {where}: {_first_few(prompts)}."
            yield Finding("error", "prompt-shared", message, hint)


def _shared(
    concept: Concept, splits: Iterable[Split], key: Callable[[Example], Hashable]
) -> list[Example]:
    """An example of every key that two splits share, in the order of the first."""
    first, second = ({key(one): one for one in concept.examples[split]} for split in splits)
    return [one for found, one in first.items() if found in second]


def _check_pairs(concept: Concept) -> Iterator[Finding]:
    """Every source example with a pair has its target counterpart in the same split."""
    for direction, spec in concept.directions.items():
        if spec.context and not set(spec.source) - set(spec.target or spec.source):
            message = f"{direction}: the counterparts are the source examples under a context."
            yield Finding("ok", "context", message)
            continue
        for split in ("train", "validation"):
            source = {one.pair for one in concept.select(split, spec.source) if one.pair}
            target = {one.pair for one in concept.select(split, spec.target) if one.pair}
            # Target examples may be counterparts of other labels, so only the source's count.
            if missing := sorted(source - target):
                message = (
                    f"{direction}: {len(missing)} of {len(source)} pairs in {split} have a source "
                    f"example and no target example: {_first_few(missing)}."
                )
                hint = "Add the target examples, in the same split."
                yield Finding("warning", "pair-incomplete", message, hint)
            if not spec.context:
                yield from _check_same(concept, direction, split)
            if not source & target:
                message = f"{direction}: {split} has no pairs, so no counterparts are matched."
                yield Finding("ok", "no-pairs", message)


def _check_same(concept: Concept, direction: Direction, split: Split) -> Iterator[Finding]:
    """A counterpart with the same prompt has a response: there is no other difference."""
    spec = concept.directions[direction]
    target = {one.pair: one for one in concept.select(split, spec.target) if one.pair}
    same = [
        one.last_turn
        for one in concept.select(split, spec.source)
        if (other := target.get(one.pair or "")) is not None
        and (other.prompt, other.prefill) == (one.prompt, one.prefill)
        and other.response in (None, one.response)
    ]
    if same:
        message = (
            f"{direction}: {len(same)} target examples in {split} have the prompt of their source "
            f"example, and neither a response nor a context: {_first_few(same)}."
        )
        hint = "Give them a `response`, or the direction a `context`."
        yield Finding("error", "target-same-as-source", message, hint)


def _check_responses(concept: Concept) -> Iterator[Finding]:
    """Given responses of source and target have similar lengths."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for example in concept.examples["train"]:
        if example.response:
            lengths[example.label].append(len(example.response.split()))
    for label, words in sorted(lengths.items()):
        message = (
            f"Responses of `{label}` in train: {len(words)}, of {min(words)} to {max(words)} "
            f"words, median {median(words):g}."
        )
        yield Finding("ok", "response-lengths", message)
    for direction, spec in concept.directions.items():
        both = [
            [n for label in labels for n in lengths.get(label, [])]
            for labels in (spec.source, spec.target)
        ]
        if not all(both):
            continue
        source, target = (median(words) for words in both)
        if max(source, target) > MAX_RATIO * min(source, target):
            message = (
                f"{direction}: the median length is {source:g} words for source responses and "
                f"{target:g} for target responses."
            )
            hint = "Give responses of similar lengths; otherwise the edit may learn the length."
            yield Finding("warning", "response-lengths-differ", message, hint)


def _check_metrics(concept: Concept) -> Iterator[Finding]:
    """Every metric has the examples that it needs in the test split."""
    if not concept.metrics:
        message = "There are no metrics, so nothing is measured."
        yield Finding("warning", "no-metrics", message, "Add some.")
    for metric in concept.metrics:
        name = f"{metric.suite}.{metric.metric}"
        examples = concept.select("test", metric.labels)
        if not examples:
            message = f"{name}: test has no examples to measure."
            hint = f"Add examples labelled {', '.join(metric.labels) or '-'}."
            yield Finding("warning", "metric-examples-missing", message, hint)
            continue
        missing = sum(not one.accept for one in examples) if metric.scorer == "correct" else 0
        if missing:
            message = f"{name}: {missing} of {len(examples)} test examples have no `accept`."
            hint = "Give each of them the phrases that a correct response contains."
            yield Finding("error", "accept-missing", message, hint)
        if absent := set(metric.groups) - {one.group for one in examples}:
            message = f"{name}: no test example has the group {_first_few(sorted(absent))}."
            hint = "Set `group` on the examples, or correct the metric's `groups`."
            yield Finding("error", "group-missing", message, hint)
    scored = any(one.scorer == "correct" and "negative" in one.labels for one in concept.metrics)
    if not scored and any(one.accept for one in concept.select("train", ["negative"])):
        message = "`correct` is not measured: some `negative` examples have no `accept`."
        hint = "Give all of them the phrases that a correct response contains."
        yield Finding("warning", "correct-not-measured", message, hint)


def _first_few(names: list[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(f"`{name}`" for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed
