"""Choose the rows of an edit and give them the base model's own replies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from retouch.concepts.catalog import load_concept
from retouch.concepts.render import Rendered, prompt_ids, render
from retouch.core.config import EditConfig
from retouch.core.errors import DataError
from retouch.core.types import Concept, Example, Message, MetricSpec, Sides, Split
from retouch.editing.forced import begun, force
from retouch.models.generate import generate
from retouch.models.load import LoadedModel

# Validation needs fewer rows than training: they are judged every round.
VALIDATION_ROWS = 64


@dataclass(frozen=True)
class EditRows:
    """The tokenized rows of an edit, of one split.

    Attributes:
        source: what is to move. Where there are pairs, with the wanted reply.
        twins: the wanted run of each source row, with the same reply; empty without pairs.
        target: what is shown as wanted, with the base model's replies.
        hold: the retain set, with the base model's own replies.
        unwanted: which rows of `hold` the discriminators are shown as unwanted too.
        groups: the group of each source row, such as the attack family or the stereotype.
        wanted: prompts with the replies that a supervised method learns.
        rejected: the prompts of `wanted` with the replies to unlearn; empty where none are known.
        demonstrations: the target's turns, each with its reply.
        gap: the metric of the concept's effect, where it is a gap between two groups.
        closing: whether the direction closes that gap, or widens it.
        asked: the source rows as the concept has them.
    """

    source: Sequence[Rendered]
    twins: Sequence[Rendered]
    target: Sequence[Rendered]
    hold: Sequence[Rendered]
    unwanted: Sequence[bool]
    groups: Sequence[str] = ()
    wanted: Sequence[Rendered] = ()
    rejected: Sequence[Rendered] = ()
    demonstrations: Sequence[tuple[tuple[Message, ...], str]] = ()
    gap: MetricSpec | None = None
    closing: bool = False
    asked: Sequence[Example] = ()


@dataclass(frozen=True)
class Drawn:
    """The rows of an edit as the concept has them.

    Attributes:
        source: what is to move.
        target: what is shown as wanted; row by row the source's partner where there are pairs.
        hold: the retain set.
        paired: whether there are pairs.
    """

    source: list[Example]
    target: list[Example]
    hold: list[Example]
    paired: bool


def draw(rng: random.Random, concept: Concept, config: EditConfig, split: Split) -> Drawn:
    """Draw the rows that a direction moves, moves towards and holds; no model is asked.

    Raises:
        DataError: a side has no rows in the split.
    """
    if config.direction not in concept.sides:
        raise DataError(
            f"The concept {concept.name} has no side to {config.direction}.",
            "It serves other concepts as their retain set; edit one of those.",
        )
    most = config.labels if split == "train" else min(config.labels, VALIDATION_ROWS)
    source, target, paired = _sides(concept, config, split, rng, most)
    count = config.retain if split == "train" else min(config.retain, VALIDATION_ROWS)
    hold = _evenly(rng, concept, split, concept.sides[config.direction].hold, count)
    hold += _of_others(config, split, count)
    return Drawn(source, target, hold, paired)


def _of_others(config: EditConfig, split: Split, count: int) -> list[Example]:
    """What other concepts move or move towards, to be held: as many rows as the own retain set."""
    drawn: list[Example] = []
    for name in config.also_hold:
        other = load_concept(name)
        sides = other.sides.values()
        labels = dict.fromkeys(label for side in sides for label in (*side.source, *side.target))
        rng = random.Random(f"{config.seed}:{split}:{name}")
        drawn += _evenly(rng, other, split, list(labels), count // len(config.also_hold))
    return drawn


def first_draw(config: EditConfig, split: Split) -> random.Random:
    """What decides the rows of a split."""
    return random.Random(f"{config.seed}:{split}")


def choose_rows(
    loaded: LoadedModel, concept: Concept, config: EditConfig, split: Split
) -> EditRows:
    """The rows that a direction moves, moves towards and holds, tokenized with their replies.

    Where source rows have a target row of the same pair, both are given the reply that the base
    model gives to the target: the wanted reply. A row's own `response` comes before the model's.

    Raises:
        DataError: a side has no rows in the split.
    """
    rng = first_draw(config, split)
    drawn = draw(rng, concept, config, split)
    source, target, hold, paired = drawn.source, drawn.target, drawn.hold, drawn.paired
    sides = concept.sides[config.direction]

    asked = [*source, *target, *hold]
    replies = dict(zip(map(_key, asked), _replies(loaded, asked, config), strict=True))

    def told(rows: Sequence[Example], replier: Sequence[Example]) -> list[Rendered]:
        return [
            render(loaded.tokenizer, row.prompt, replies[_key(other)], row.prefill)
            for row, other in zip(rows, replier, strict=True)
        ]

    shown, own, held = told(target, target), told(source, source), told(hold, hold)
    moved = told(source, target) if paired else own
    gap, closing = _gap(concept, sides, source), sides.effect_better == "lower"
    wanted, rejected = moved, own
    if not paired and gap is not None:
        wanted, rejected = _chosen(loaded, source, gap, closing, config)
    elif not paired:
        wanted, rejected = shown, []
    twins = shown if paired else []
    groups = [row.group for row in source]
    if paired and config.forced:
        more = force(rng, moved, own, twins, begun(loaded, hold, held), config)
        moved, twins = [*moved, *more.moved], [*twins, *more.twins]
        wanted, rejected = moved, [*own, *more.rejected]
        groups += [groups[i] for i in more.of]
    return EditRows(
        source=moved,
        twins=twins,
        target=shown,
        hold=held,
        unwanted=[row.label not in sides.target for row in hold],
        groups=groups,
        wanted=wanted,
        rejected=rejected,
        demonstrations=[(row.prompt, replies[_key(row)]) for row in target],
        gap=gap,
        closing=closing,
        asked=source,
    )


def _sides(
    concept: Concept, config: EditConfig, split: Split, rng: random.Random, most: int
) -> tuple[list[Example], list[Example], bool]:
    """At most `most` rows of source and target, and whether they are pairs."""
    sides = concept.sides[config.direction]
    source = _source(concept, sides, config, split)
    target = concept.select(split, sides.target)
    for name, labels, rows in (("source", sides.source, source), ("target", sides.target, target)):
        if not rows:
            raise DataError(
                f"The concept {concept.name} has no {split} rows labelled "
                f"{' or '.join(labels)}, the {name} of `--direction {config.direction}`.",
                "Add some: an edit needs both classes.",
            )
    partner: dict[str | None, Example] = {row.pair: row for row in target if row.pair}
    paired = [row for row in source if row.pair in partner]
    if paired:
        source = _sample(rng, paired, most)
        return source, [partner[row.pair] for row in source], True
    return _sample(rng, source, most), _sample(rng, target, most), False


def _source(concept: Concept, sides: Sides, config: EditConfig, split: Split) -> list[Example]:
    """The rows to move; what the configuration names is for training alone."""
    if config.source is None or split != "train":
        return concept.select(split, sides.source)
    label, _, group = config.source.partition(":")
    named = [row for row in concept.select(split, [label]) if group in ("", row.group)]
    if not named:
        raise DataError(
            f"`--source {config.source}`: the concept {concept.name} has no such training rows.",
            "Name one of its labels, or a label and a group, as `retouch concept show` lists them.",
        )
    return named


def _gap(concept: Concept, sides: Sides, source: Sequence[Example]) -> MetricSpec | None:
    """The effect's metric, if it is a gap and the source rows are of its two groups."""
    for spec in concept.metrics:
        if spec.metric == sides.effect and spec.scorer == "gap":
            return spec if {row.group for row in source} == set(spec.groups) else None
    return None


def _chosen(
    loaded: LoadedModel, rows: Sequence[Example], gap: MetricSpec, closing: bool, config: EditConfig
) -> tuple[list[Rendered], list[Rendered]]:
    """Replies that begin with a gap's choices, to learn and to unlearn, row by row.

    Closing the gap, every prompt gets one reply with each choice (counterfactual augmentation);
    widening it, the choice of the row's group. The base model finishes what the choice begins.
    """
    begun = [(row, choice) for row in rows for choice in gap.choices]
    prompts = [prompt_ids(loaded.tokenizer, row.prompt, choice) for row, choice in begun]
    with loaded.reference():
        ends = generate(loaded, prompts, max_new_tokens=config.reply_tokens, batch_size=256)
    both = [
        render(loaded.tokenizer, row.prompt, f"{choice} {end}")
        for (row, choice), end in zip(begun, ends, strict=True)
    ]
    if closing:
        turned = [both[i ^ 1] for i in range(len(both))]
        return both, turned
    right = [2 * i + gap.groups.index(row.group) for i, row in enumerate(rows)]
    return [both[i] for i in right], [both[i ^ 1] for i in right]


def _sample(rng: random.Random, rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` rows, the groups of the source taken in turn so that none is left out."""
    groups: dict[str, list[Example]] = {}
    for row in rng.sample(list(rows), len(rows)):
        groups.setdefault(row.group, []).append(row)
    turns = [members.pop() for _ in range(len(rows)) for members in groups.values() if members]
    return turns[:most]


def _evenly(
    rng: random.Random, concept: Concept, split: Split, labels: Sequence[str], most: int
) -> list[Example]:
    """At most `most` rows, as many of each label as there are or as fit."""
    pools = [concept.select(split, [label]) for label in labels]
    pools = [rng.sample(pool, len(pool)) for pool in pools if pool]
    drawn: list[Example] = []
    while any(pools) and len(drawn) < most:
        drawn += [pool.pop() for pool in pools if pool]
    return drawn[:most]


def _replies(loaded: LoadedModel, rows: Sequence[Example], config: EditConfig) -> list[str]:
    silent = [row for row in rows if row.response is None]
    prompts = [prompt_ids(loaded.tokenizer, row.prompt, row.prefill) for row in silent]
    with loaded.reference():
        own = generate(loaded, prompts, max_new_tokens=config.reply_tokens, batch_size=256)
    spoken = iter(own)
    return [next(spoken) if row.response is None else row.response for row in rows]


def _key(row: Example) -> tuple[object, ...]:
    return (row.prompt, row.prefill, row.response)
