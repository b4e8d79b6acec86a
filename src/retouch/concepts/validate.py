"""Check a concept's examples before an edit: errors, warnings, and counts for information."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from itertools import combinations
from statistics import median

from retouch.concepts.concept import Concept, Example
from retouch.concepts.example_files import paused_collection
from retouch.concepts.normalization import normalized, normalized_prompt
from retouch.concepts.splits import MIN_EXAMPLES
from retouch.core.finding import LEVELS, Finding, Level
from retouch.core.types import SPLITS, Direction, Split

MAX_RATIO = 3.0  # a larger ratio of the numbers, or of the lengths, of examples gives a warning
LONG = 30_000  # characters of an example, which are more than many models' contexts


@paused_collection()
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
        _check_long,
        _check_metrics,
        _count_examples,
    )
    findings = [*concept.notes, *(finding for check in checks for finding in check(concept))]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _count_examples(concept: Concept) -> Iterator[Finding]:
    for split, counts in _count_labels(concept).items():
        listed = ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
        yield Finding("ok", "examples", f"{split}: {listed or 'no examples'}.")


def _check_directions(concept: Concept) -> Iterator[Finding]:
    """Every set of every direction has examples; source and target have similar numbers."""
    if not concept.directions:
        message = "There are no directions: the concept only serves other concepts."
        yield Finding("ok", "no-directions", message)
    counted = _count_labels(concept)
    for direction, spec in concept.directions.items():
        for name in ("source", "target", "retain"):
            labels = getattr(spec, name)
            if name == "retain" and not labels and concept.add_ordinary:
                continue
            for split in SPLITS:
                if any(counted[split][label] for label in labels):
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
        for name, labels in (("source", spec.source), ("target", spec.target)):
            yield from _check_number(counted, f"{direction}: {{}} {name} examples", labels)
        counts = [
            sum(counted["train"][label] for label in set(labels))
            for labels in (spec.source, spec.target)
        ]
        if min(counts) and max(counts) > MAX_RATIO * min(counts):
            message = f"{direction}: train has {counts[0]} source and {counts[1]} target examples."
            yield Finding("warning", "unbalanced", message, "Add examples to the smaller set.")


def _count_labels(concept: Concept) -> dict[Split, Counter[str]]:
    return {split: Counter(one.label for one in concept.examples[split]) for split in SPLITS}


def _check_number(
    counted: Mapping[Split, Counter[str]], text: str, labels: tuple[str, ...]
) -> Iterator[Finding]:
    """A set has more than one example to train on, and as many in all as are recommended."""
    counts = {split: sum(counted[split][label] for label in set(labels)) for split in SPLITS}
    total = sum(counts.values())
    hint = f"Add examples: at least {MIN_EXAMPLES} are recommended."
    if counts["train"] == 1:
        one = text.format(f"1 of {total}")
        message = f"{one} is in train: an edit would learn it and not the concept."
        yield Finding("error", "one-example", message, hint)
    elif 0 < total < MIN_EXAMPLES:
        yield Finding("warning", "few-examples", f"{text.format(total)} are few.", hint)


def _check_long(concept: Concept) -> Iterator[Finding]:
    """No example is longer than the contexts of many models."""
    for split in SPLITS:
        lengths = {
            one.description: size
            for one in concept.examples[split]
            if (size := _characters(one)) > LONG
        }
        if lengths:
            message = (
                f"{len(lengths)} examples in {split} have more than {LONG:,} characters, the "
                f"longest {max(lengths.values()):,}: {_first_few(list(lengths))}."
            )
            hint = "Shorten them where the model's context is shorter: `retouch doctor` checks it."
            yield Finding("warning", "text-long", message, hint)


def _characters(example: Example) -> int:
    turns = sum(len(turn.content) for turn in example.prompt)
    return turns + len(example.prefill) + len(example.response or "")


def _check_splits(concept: Concept) -> Iterator[Finding]:
    """The splits share no prompt, and within a label no entity; a shared group is allowed."""
    fields: tuple[tuple[str, str, Level], ...] = (
        ("entity", "entities", "error"),
        ("group", "groups", "ok"),
    )
    hint = "Move the examples that share one into the same split."
    # The prompts are normalised once, since there may be many.
    found: dict[tuple[Split, str], dict[Hashable, Example]] = {}
    for split in SPLITS:
        for field in ("entity", "group"):
            examples = [one for one in concept.examples[split] if getattr(one, field)]
            found[split, field] = {(one.label, getattr(one, field)): one for one in examples}
        prompts = (
            (normalized_prompt(one) or normalized(one.prefill), one)
            for one in concept.examples[split]
        )
        found[split, "prompt"] = dict(prompts)
    for splits in combinations(SPLITS, 2):
        where = f"are in both {splits[0]} and {splits[1]}"
        for field, plural, level in fields:
            by_label: dict[str, list[str]] = defaultdict(list)
            for one, _ in _shared(*(found[split, field] for split in splits)):
                by_label[one.label].append(getattr(one, field))
            for label, names in by_label.items():
                message = f"{len(names)} {plural} of `{label}` {where}: {_first_few(names)}."
                yield Finding(level, f"{field}-shared", message, hint if level == "error" else "")
        if same := _shared(*(found[split, "prompt"] for split in splits)):
            message = (
                f"{len(same)} prompts {where}: {_first_few([one.last_turn for one, _ in same])}."
            )
            first, second = (one.location for one in same[0])
            if first and second:
                message += f" The first: {first}; and {second}."
            yield Finding("error", "prompt-shared", message, hint)


def _shared(
    first: Mapping[Hashable, Example], second: Mapping[Hashable, Example]
) -> list[tuple[Example, Example]]:
    """The examples of every key that two splits share, in the order of the first."""
    return [(one, second[key]) for key, one in first.items() if key in second]


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
