"""Tokenized rows in batches of like length, with the positions at which the reply is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.render import Rendered


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

    def reply(self, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and position `[n]` of the states that predict the reply's first `most` tokens.

        The first one of each row is the decision: the last token of the prompt.
        """
        rows, at = [], []
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            end = length - 1 if most is None else min(length - 1, start - 1 + most)
            for position in range(start - 1, end):
                rows.append(row)
                at.append(position)
        return torch.tensor(rows), torch.tensor(at)

    def first(self) -> torch.Tensor:
        """`[n]`, true at the first of each row's positions in `reply()`: where it is decided."""
        rows, _ = self.reply()
        return torch.cat([rows[:1] == rows[:1], rows[1:] != rows[:-1]])

    def real(self) -> torch.Tensor:
        """`[rows, tokens]`, true where there is a token and no padding."""
        return torch.arange(self.ids.shape[1])[None, :] < torch.tensor(self.lengths)[:, None]

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
