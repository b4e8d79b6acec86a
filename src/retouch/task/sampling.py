"""Sample the source, target and retain examples of an edit from a concept; no model is run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from retouch.concepts.concept import Concept, Context, DirectionSpec, Example
from retouch.concepts.registry import load_concept
from retouch.core.config import DataConfig
from retouch.core.errors import DataError
from retouch.core.types import Direction, Split

# Fewer than for training: they are run after every round.
MAX_VALIDATION, MAX_VALIDATION_RETAIN = 32, 128


@dataclass(frozen=True)
class SampledExamples:
    """The examples of an edit as the concept has them.

    Attributes:
        source: source examples; a response of theirs is the one to unlearn.
        target: target examples, under the direction's context if there is one; with pairs, the
            counterpart of each source example. A response of theirs is the one to learn.
        retain: the retain set.
        paired: whether there are pairs.
    """

    source: list[Example]
    target: list[Example]
    retain: list[Example]
    paired: bool


def example_rng(seed: int, split: Split) -> random.Random:
    """The random generator that the examples of a split are sampled with."""
    return random.Random(f"{seed}:{split}")


def sample_examples(
    rng: random.Random,
    concept: Concept,
    direction: Direction,
    split: Split,
    data: DataConfig,
    seed: int,
) -> SampledExamples:
    """Sample source, target and retain examples of a split; no model is run.

    Raises:
        DataError: a set has no examples in the split.
    """
    spec = find_direction(concept, direction)
    limit = data.num_examples if split == "train" else min(data.num_examples, MAX_VALIDATION)
    source, target, paired = _sample_sides(rng, concept, direction, split, data, limit)
    if spec.context is not None:
        source, target = _apply_context(spec.context, source, target, paired)
    limit = data.num_retain if split == "train" else min(data.num_retain, MAX_VALIDATION_RETAIN)
    retain = _sample_evenly(rng, concept, split, spec.retain, limit)
    for name in data.retain_concepts:
        other = load_concept(name)
        specs = other.directions.values()
        labels = dict.fromkeys(label for one in specs for label in (*one.source, *one.target))
        share = limit // len(data.retain_concepts)
        other_rng = random.Random(f"{seed}:{split}:{name}")
        retain += _sample_evenly(other_rng, other, split, list(labels), share)
    return SampledExamples(source, target, retain, paired)


def find_direction(concept: Concept, direction: Direction) -> DirectionSpec:
    """The example sets of a direction.

    Raises:
        DataError: the concept has no such direction.
    """
    if direction not in concept.directions:
        raise DataError(
            f"The concept {concept.name} has no direction `{direction}`.",
            "It provides retain examples for other concepts; edit one of those.",
            code="direction-missing",
        )
    return concept.directions[direction]


def _sample_sides(
    rng: random.Random,
    concept: Concept,
    direction: Direction,
    split: Split,
    data: DataConfig,
    limit: int,
) -> tuple[list[Example], list[Example], bool]:
    """At most `limit` source and target examples, and whether they are pairs."""
    spec = concept.directions[direction]
    source = _source_examples(concept, spec, split, data.source_filter)
    target = concept.select(split, spec.target)
    for name, labels, found in (("source", spec.source, source), ("target", spec.target, target)):
        if labels and not found:
            raise DataError(
                f"The concept {concept.name} has no {split} examples labelled "
                f"{' or '.join(labels)}, the {name} of the direction `{direction}`.",
                "Add some: an edit needs source and target examples.",
                code="examples-missing",
            )
    of_pair: dict[str | None, Example] = {one.pair: one for one in target if one.pair}

    def counterpart(example: Example) -> Example | None:
        itself = spec.context and (not spec.target or example.label in spec.target)
        return of_pair.get(example.pair) or (example if itself else None)

    if paired := [example for example in source if counterpart(example)]:
        source = _sample_pairs(rng, paired, limit, data.wrapped_share)
        return source, [other for one in source if (other := counterpart(one))], True
    return sample_by_group(rng, source, limit), sample_by_group(rng, target, limit), False


def _sample_pairs(
    rng: random.Random, examples: Sequence[Example], limit: int, wrapped_share: float
) -> list[Example]:
    """The source examples of at most `limit` pairs.

    A request and its wrapped forms are one labelled example. Of a share of them, the wrapped forms
    follow the plain ones.
    """
    of_pair: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        of_pair.setdefault(example.pair or number, []).append(example)
    rest = {id(members[0]): members[1:] for members in of_pair.values()}
    chosen = sample_by_group(rng, [members[0] for members in of_pair.values()], limit)
    wrapped = [one for plain in chosen for one in rest[id(plain)]]
    return [*chosen, *sample_by_group(rng, wrapped, round(wrapped_share * len(wrapped)))]


def _apply_context(
    context: Context, source: Sequence[Example], target: Sequence[Example], paired: bool
) -> tuple[list[Example], list[Example]]:
    """Put target examples under a context; a pair's response is the target's, or the source's."""
    if not paired:
        return list(source), [context.apply(one) for one in target]
    source_prompts, elicited = [], []
    for one, other in zip(source, target, strict=True):
        response = one.response if other.response is None else other.response
        elicited.append(replace(context.apply(other), response=response))
        # A response that is learned is not the source's own, which the base model then generates.
        taken = other is one or other.response is None
        source_prompts.append(replace(one, response=None) if taken else one)
    return source_prompts, elicited


def _source_examples(
    concept: Concept, spec: DirectionSpec, split: Split, source_filter: str | None
) -> list[Example]:
    """The source examples; the filter applies to the training split alone."""
    if source_filter is None or split != "train":
        return concept.select(split, spec.source)
    label, _, group = source_filter.partition(":")
    found = [one for one in concept.select(split, [label]) if group in ("", one.group)]
    if not found:
        raise DataError(
            f"`source_filter` {source_filter}: the concept {concept.name} has no such training "
            "examples.",
            "Give a label, or LABEL:GROUP; `retouch concept show` lists the labels.",
            code="examples-missing",
        )
    return found


def sample_by_group(rng: random.Random, examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` examples from the groups in turn, so that each group is represented."""
    groups: dict[str, list[Example]] = {}
    for example in rng.sample(list(examples), len(examples)):
        groups.setdefault(example.group, []).append(example)
    in_turn = [group.pop() for _ in range(len(examples)) for group in groups.values() if group]
    return in_turn[:limit]


def _sample_evenly(
    rng: random.Random, concept: Concept, split: Split, labels: Sequence[str], limit: int
) -> list[Example]:
    """At most `limit` examples, equally many of each label as far as there are."""
    pools = [concept.select(split, [label]) for label in labels]
    pools = [rng.sample(pool, len(pool)) for pool in pools if pool]
    sampled: list[Example] = []
    while any(pools) and len(sampled) < limit:
        sampled += [pool.pop() for pool in pools if pool]
    return sampled[:limit]
