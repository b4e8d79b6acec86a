"""Source rows on which the beginning of an unwanted reply is forced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from retouch.concepts.render import Rendered, prompt_ids
from retouch.core.config import EditConfig
from retouch.core.types import Example
from retouch.models.load import LoadedModel


@dataclass(frozen=True)
class Forced:
    """Source rows on which the beginning of an unwanted reply is forced.

    Attributes:
        moved: with the wanted reply after it.
        twins: their twins.
        rejected: with the rest of the unwanted reply after it.
        of: the number of the source row that each was made of.
    """

    moved: list[Rendered]
    twins: list[Rendered]
    rejected: list[Rendered]
    of: list[int]


def force(
    rng: random.Random,
    moved: Sequence[Rendered],
    own: Sequence[Rendered],
    twins: Sequence[Rendered],
    openings: Sequence[tuple[int, ...]],
    config: EditConfig,
) -> Forced:
    """The source rows with the beginnings of unwanted replies forced on them.

    By turns the beginning is that of the row's own unwanted reply and of one of `openings`, and the
    prompt is the source row's and its twin's: what was begun is to be broken off, whatever it is.
    In all of them the wanted reply follows, so that they share the twin.
    """
    made = Forced([], [], [], [])
    for i, (row, unwanted, twin) in enumerate(zip(moved, own, twins, strict=True)):
        reply = row.ids[row.start :]
        prompts = (row.ids[: row.start], twin.ids[: twin.start])
        for number in range(config.forced_rows):
            said = unwanted.ids[unwanted.start :]
            if openings and number // 2 % 2:
                said = rng.choice(openings)
            prompt = prompts[number % 2]
            # The end of the turn is not forced, and something is left to be said.
            most = min(config.forced, max(1, len(said) - 2))
            cut = rng.randint(1, most)
            start = len(prompt) + cut
            made.moved.append(Rendered((*prompt, *said[:cut], *reply), start))
            made.twins.append(twin)
            made.rejected.append(Rendered((*prompt, *said), start))
            made.of.append(i)
    return made


def begun(
    loaded: LoadedModel, rows: Sequence[Example], told: Sequence[Rendered]
) -> list[tuple[int, ...]]:
    """What is said in rows whose reply is forced to begin in some way; if none is, in all."""
    forced = [(row, text) for row, text in zip(rows, told, strict=True) if row.prefill]
    return [
        text.ids[len(prompt_ids(loaded.tokenizer, row.prompt)) :]
        for row, text in forced or zip(rows, told, strict=True)
    ]
