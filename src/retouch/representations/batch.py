"""Tokenized chats in padded batches of similar length, with the positions of their responses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from retouch.concepts.chat import TokenizedChat

Item = TypeVar("Item")
Positions = tuple[torch.Tensor, torch.Tensor]
"""Row and position `[n]` of states in a batch."""


@dataclass(frozen=True)
class PaddedBatch:
    """Chats that run together, padded on the right.

    Attributes:
        index: which chats of the set these are.
        ids: token ids `[rows, tokens]`.
        starts: for each row the first position of the response.
        lengths: for each row the number of tokens.
    """

    index: tuple[int, ...]
    ids: torch.Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def response_positions(
        self, limit: int | None = None, prompt_tokens: Sequence[int] = ()
    ) -> Positions:
        """The states that predict the response's first `limit` tokens (default: all of them).

        The first one of each row is at the last token of the prompt.

        Args:
            limit: the maximum number of response tokens.
            prompt_tokens: for each row, how many prompt tokens before that one are included.
        """
        rows, positions = [], []
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            end = length - 1 if limit is None else min(length - 1, start - 1 + limit)
            begin = start - 1 - (prompt_tokens[row] if prompt_tokens else 0)
            for position in range(begin, end):
                rows.append(row)
                positions.append(position)
        return torch.tensor(rows), torch.tensor(positions)

    def response_tokens(self) -> torch.Tensor:
        """The response tokens `[n]` that the states at `response_positions()` predict."""
        rows, positions = self.response_positions()
        return self.ids[rows, positions + 1]

    def token_positions(self) -> Positions:
        """Every position of a token; padding is left out."""
        return self.token_mask().nonzero(as_tuple=True)  # type: ignore[return-value]

    def token_mask(self) -> torch.Tensor:
        """A mask `[rows, tokens]`: true for tokens, false for padding."""
        return torch.arange(self.ids.shape[1])[None, :] < torch.tensor(self.lengths)[:, None]

    def position_weights(self, positions: Positions, first_token_weight: float) -> torch.Tensor:
        """Weights `[n]` of positions: `first_token_weight` at the last prompt token, else 1."""
        return torch.where(self.response_offsets(positions) == 0, first_token_weight, 1.0)

    def response_offsets(self, positions: Positions) -> torch.Tensor:
        """The offset `[n]` of each position in its response; 0 is the last prompt token."""
        rows, at = positions
        return at - (torch.tensor(self.starts, device=at.device)[rows] - 1)

    def common_prompt_suffix(self, other: PaddedBatch) -> list[int]:
        """For each row, how many tokens before the last one the prompts of both batches share."""
        shared = []
        for row, (start, other_start) in enumerate(zip(self.starts, other.starts, strict=True)):
            longest = min(start, other_start)
            ids = self.ids[row, start - longest : start]
            other_ids = other.ids[row, other_start - longest : other_start]
            different = (ids != other_ids).nonzero()
            same = longest if not len(different) else longest - 1 - int(different[-1])
            shared.append(max(same - 1, 0))
        return shared

    def select(self, rows: Sequence[int]) -> PaddedBatch:
        """Some of the rows, by their index in this batch, padded to the longest of them."""
        lengths = tuple(self.lengths[row] for row in rows)
        return PaddedBatch(
            tuple(self.index[row] for row in rows),
            self.ids[list(rows), : max(lengths)],
            tuple(self.starts[row] for row in rows),
            lengths,
        )

    def counterpart(self, chats: Sequence[TokenizedChat], pad: int) -> PaddedBatch:
        """The chats of another set with the same `index`, in the same order."""
        return _pad(self.index, chats, pad)


def _pad(index: tuple[int, ...], chats: Sequence[TokenizedChat], pad: int) -> PaddedBatch:
    longest = max(len(chats[i].ids) for i in index)
    ids = torch.full((len(index), longest), pad)
    for row, i in enumerate(index):
        ids[row, : len(chats[i].ids)] = torch.tensor(chats[i].ids)
    return PaddedBatch(
        index, ids, tuple(chats[i].start for i in index), tuple(len(chats[i].ids) for i in index)
    )


def make_batches(
    chats: Sequence[TokenizedChat], size: int, pad: int, max_tokens: int | None = None
) -> list[PaddedBatch]:
    """Split chats into batches of at most `size` rows and `max_tokens` padded tokens.

    Chats of similar length share a batch; one that is longer than `max_tokens` runs alone.
    """
    groups: list[list[int]] = []
    # In ascending order: the next chat is the longest of its batch.
    for i in sorted(range(len(chats)), key=lambda i: (len(chats[i].ids), i)):
        limit = size if max_tokens is None else min(size, max_tokens // len(chats[i].ids))
        if not groups or len(groups[-1]) >= limit:
            groups.append([])
        groups[-1].append(i)
    return [_pad(tuple(index), chats, pad) for index in groups]


def shuffled_forever(items: Sequence[Item], rng: random.Random) -> Iterator[Item]:
    """The items without end, in a new order in every epoch; nothing if there are none."""
    while items:
        yield from rng.sample(items, len(items))
