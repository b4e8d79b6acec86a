"""Choose the rows of an edit and give them the base model's own replies."""

from __future__ import annotations

import random
from collections.abc import Sequence

from retouch.concepts.render import Rendered, prompt_ids, render
from retouch.core.config import EditConfig
from retouch.core.errors import DataError
from retouch.core.types import Concept, Example, Split
from retouch.editing.board import EditRows
from retouch.models.generate import generate
from retouch.models.load import LoadedModel

# Validation needs fewer rows than training: they are judged every round.
VALIDATION_ROWS = 64


def choose_rows(
    loaded: LoadedModel, concept: Concept, config: EditConfig, split: Split
) -> EditRows:
    """The rows that a direction moves, moves towards and holds, tokenized with their replies.

    Where source rows have a target row of the same pair, both are given the reply that the base
    model gives to the target: the wanted reply. A row's own `response` comes before the model's.

    Raises:
        DataError: a side has no rows in the split.
    """
    if config.direction not in concept.sides:
        raise DataError(
            f"The concept {concept.name} has no side to {config.direction}.",
            "It serves other concepts as their retain set; edit one of those.",
        )
    sides = concept.sides[config.direction]
    rng = random.Random(f"{config.seed}:{split}")
    most = config.labels if split == "train" else min(config.labels, VALIDATION_ROWS)
    source = concept.select(split, sides.source)
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
        target = [partner[row.pair] for row in source]
    else:
        source, target = _sample(rng, source, most), _sample(rng, target, most)
    hold_count = config.retain if split == "train" else min(config.retain, VALIDATION_ROWS)
    hold = _evenly(rng, concept, split, sides.hold, hold_count)

    asked = [*target, *hold] if paired else [*source, *target, *hold]
    replies = dict(zip(map(_key, asked), _replies(loaded, asked, config), strict=True))

    def told(rows: Sequence[Example], replier: Sequence[Example]) -> list[Rendered]:
        return [
            render(loaded.tokenizer, row.prompt, replies[_key(other)], row.prefill)
            for row, other in zip(rows, replier, strict=True)
        ]

    wanted = told(target, target)
    return EditRows(
        source=told(source, target if paired else source),
        twins=wanted if paired else (),
        target=wanted,
        hold=told(hold, hold),
        unwanted=[row.label not in sides.target for row in hold],
    )


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
    prompts = [prompt_ids(loaded.tokenizer, row.prompt, row.prefill) for row in rows]
    with loaded.reference():
        own = generate(loaded, prompts, max_new_tokens=config.reply_tokens, batch_size=256)
    return [
        row.response if row.response is not None else reply
        for row, reply in zip(rows, own, strict=True)
    ]


def _key(row: Example) -> tuple[object, ...]:
    return (row.prompt, row.prefill, row.response)
