"""Tokenized rows in batches of like length, with the positions at which the reply is decided."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from retouch.concepts.render import Rendered

One = TypeVar("One")


@dataclass(frozen=True)
class Batch:
    """Rows that run together, padded on the right.

    Attributes:
        index: which rows of the set these are.
        ids: token ids `[rows, tokens]`.
        starts: per row the first position of the reply.
        lengths: per row the number of tokens.
    """

    index: tuple[int, ...]
    ids: torch.Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def reply(
        self, most: int | None = None, before: Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and position `[n]` of the states that predict the reply's first `most` tokens.

        The first one of each row is the decision: the last token of the prompt. `before` begins so
        many tokens of the prompt earlier, row by row.
        """
        rows, at = [], []
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            end = length - 1 if most is None else min(length - 1, start - 1 + most)
            begin = start - 1 - (before[row] if before else 0)
            for position in range(begin, end):
                rows.append(row)
                at.append(position)
        return torch.tensor(rows), torch.tensor(at)

    def told(self) -> torch.Tensor:
        """`[n]`, the reply tokens that the states at `reply()` predict."""
        rows, at = self.reply()
        return self.ids[rows, at + 1]

    def weights(self, at: tuple[torch.Tensor, torch.Tensor], first: float) -> torch.Tensor:
        """Of the positions `at` `[n]`: `first` where a reply is decided, 1 elsewhere."""
        rows, positions = at
        decisions = torch.tensor(self.starts) - 1
        return torch.where(positions == decisions[rows], first, 1.0)

    def real(self) -> torch.Tensor:
        """`[rows, tokens]`, true where there is a token and no padding."""
        return torch.arange(self.ids.shape[1])[None, :] < torch.tensor(self.lengths)[:, None]

    def shared(self, other: Batch) -> list[int]:
        """How many tokens before the decision the prompts of both end in, row by row."""
        found = []
        for row, (start, theirs) in enumerate(zip(self.starts, other.starts, strict=True)):
            most = min(start, theirs)
            ours, twins = (
                self.ids[row, start - most : start],
                other.ids[row, theirs - most : theirs],
            )
            unlike = (ours != twins).nonzero()
            same = most if not len(unlike) else most - 1 - int(unlike[-1])
            found.append(max(same - 1, 0))
        return found

    def part(self, rows: Sequence[int]) -> Batch:
        """Some of the rows, by their places in this batch, padded no further than they need."""
        lengths = tuple(self.lengths[row] for row in rows)
        return Batch(
            tuple(self.index[row] for row in rows),
            self.ids[list(rows), : max(lengths)],
            tuple(self.starts[row] for row in rows),
            lengths,
        )

    def twin(self, others: Sequence[Rendered], pad: int) -> Batch:
        """The rows of the same numbers from another set, in the same order."""
        return _batch(self.index, others, pad)


def _batch(index: tuple[int, ...], rows: Sequence[Rendered], pad: int) -> Batch:
    longest = max(len(rows[i].ids) for i in index)
    ids = torch.full((len(index), longest), pad)
    for row, i in enumerate(index):
        ids[row, : len(rows[i].ids)] = torch.tensor(rows[i].ids)
    return Batch(
        index, ids, tuple(rows[i].start for i in index), tuple(len(rows[i].ids) for i in index)
    )


def make_batches(
    rows: Sequence[Rendered], size: int, pad: int, tokens: int | None = None
) -> list[Batch]:
    """Cut rows into batches of at most `size` rows and `tokens` padded tokens.

    Rows of like length come together; a row that is longer than `tokens` runs alone.
    """
    cut: list[list[int]] = []
    # Sorted upwards: the row about to come in is the longest of its batch.
    for i in sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i)):
        room = size if tokens is None else min(size, tokens // len(rows[i].ids))
        if not cut or len(cut[-1]) >= room:
            cut.append([])
        cut[-1].append(i)
    return [_batch(tuple(index), rows, pad) for index in cut]


def turns(batches: Sequence[One], rng: random.Random) -> Iterator[One]:
    """The batches without end, in a new order every time through; nothing if there are none."""
    while batches:
        yield from rng.sample(batches, len(batches))
