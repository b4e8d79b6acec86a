"""Tokenized chats in batches, padded or packed, with the positions of their responses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.shared_beginning import MIN_SHARED, shared_beginning

Item = TypeVar("Item")
Positions = tuple[torch.Tensor, torch.Tensor]
"""Row and position `[n]` of states in a batch."""

ROW_TOKENS = 256  # of a packed row: longer ones pad less, and their attention costs more


@dataclass(frozen=True)
class ChatBatch:
    """Chats that run together.

    A padded batch has one chat a row, padded on the right. A packed one has several chats a row,
    each of which attends to itself and to the beginning that all chats of the row share, such as
    a system turn, which is computed once: the states are those of the padded batch, without the
    padding.

    Attributes:
        index: which chats of the set these are.
        ids: token ids `[rows, tokens]`.
        rows: the row of each chat.
        begins: for each chat the position of its first token after the shared beginning.
        starts: for each chat the first position of its response.
        ends: for each chat the position after its last token.
        shared: for each chat the number of tokens of the shared beginning, the first ones of its
            row; 0 in a padded batch.
        packed: whether rows hold several chats.
        prefills: for each chat the number of tokens before its response that are a prefill.
    """

    index: tuple[int, ...]
    ids: torch.Tensor
    rows: tuple[int, ...]
    begins: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    shared: tuple[int, ...]
    packed: bool = False
    prefills: tuple[int, ...] = ()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """For each chat the number of its tokens, the shared beginning included."""
        chats = zip(self.shared, self.begins, self.ends, strict=True)
        return tuple(shared + end - begin for shared, begin, end in chats)

    def packing(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """The model's arguments besides the ids: positions and mask of packed chats.

        A padded batch needs none: in a causal decoder no token attends to the padding after it.

        Returns:
            Nothing, or `position_ids` `[rows, tokens]` and an additive `attention_mask`
            `[rows, 1, tokens, tokens]` of the given dtype.
        """
        if not self.packed:
            return {}
        # The number of each token's chat: 0 for the shared beginning, -1 for padding.
        chat = torch.full(self.ids.shape, -1)
        positions = torch.zeros_like(self.ids)
        spans = zip(self.rows, self.shared, self.begins, self.ends, strict=True)
        for number, (row, shared, begin, end) in enumerate(spans, start=1):
            chat[row, :shared], positions[row, :shared] = 0, torch.arange(shared)
            chat[row, begin:end] = number
            positions[row, begin:end] = torch.arange(shared, shared + end - begin)
        one, other = chat[:, :, None], chat[:, None, :]
        visible = ((one == other) | (other == 0) | (one == -1)).tril()
        mask = torch.zeros(visible.shape, dtype=dtype)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        return {
            "position_ids": positions.to(device),
            "attention_mask": mask[:, None].to(device),
        }

    def response_positions(
        self, limit: int | None = None, prompt_tokens: Sequence[int] = ()
    ) -> Positions:
        """The states that predict the response's first `limit` tokens (default: all of them).

        The first one of each chat is at the last token of the prompt.

        Args:
            limit: the maximum number of response tokens.
            prompt_tokens: for each chat, how many prompt tokens before that one are included.
        """
        rows: list[int] = []
        positions: list[int] = []
        chats = zip(self.rows, self.starts, self.ends, strict=True)
        for number, (row, start, end) in enumerate(chats):
            last = end - 1 if limit is None else min(end - 1, start - 1 + limit)
            begin = start - 1 - (prompt_tokens[number] if prompt_tokens else 0)
            rows += [row] * (last - begin)
            positions += range(begin, last)
        return torch.tensor(rows), torch.tensor(positions)

    def response_chats(self, limit: int | None = None) -> torch.Tensor:
        """For each state at `response_positions(limit)` the number `[n]` of its chat."""
        counts = [end - start for start, end in zip(self.starts, self.ends, strict=True)]
        counts = [count if limit is None else min(count, limit) for count in counts]
        return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def response_tokens(self) -> torch.Tensor:
        """The response tokens `[n]` that the states at `response_positions()` predict."""
        rows, positions = self.response_positions()
        return self.ids[rows, positions + 1]

    def prefill_positions(self) -> tuple[Positions, torch.Tensor]:
        """The states before the last one of each prefill, where the response could begin too.

        The first one of a chat is at the last token of its prompt.

        Returns:
            Their positions, and the number `[n]` of the chat of each.
        """
        rows: list[int] = []
        positions: list[int] = []
        chats: list[int] = []
        for number, prefill in enumerate(self.prefills):
            begin, shared = self.begins[number], self.shared[number]
            start = self.starts[number] - begin + shared  # in the chat itself
            for at in range(start - 1 - prefill, start - 1):
                rows.append(self.rows[number])
                positions.append(at if at < shared else begin + at - shared)
                chats.append(number)
        # Typed, since there may be none.
        one, two, three = (torch.tensor(x, dtype=torch.long) for x in (rows, positions, chats))
        return (one, two), three

    def token_positions(self) -> Positions:
        """Every position of a token; padding is left out."""
        return self.token_mask().nonzero(as_tuple=True)  # type: ignore[return-value]

    def token_mask(self) -> torch.Tensor:
        """A mask `[rows, tokens]`: true for tokens, false for padding."""
        lengths = [0] * len(self.ids)
        for row, end in zip(self.rows, self.ends, strict=True):
            lengths[row] = max(lengths[row], end)
        return torch.arange(self.ids.shape[1])[None, :] < torch.tensor(lengths)[:, None]

    def first_positions(self, positions: Positions) -> torch.Tensor:
        """Which of some positions `[n]` are at the last token of a prompt."""
        last = {(row, start - 1) for row, start in zip(self.rows, self.starts, strict=True)}
        pairs = zip(positions[0].tolist(), positions[1].tolist(), strict=True)
        return torch.tensor([pair in last for pair in pairs], dtype=torch.bool)

    def position_weights(self, positions: Positions, first_token_weight: float) -> torch.Tensor:
        """Weights `[n]` of positions: `first_token_weight` at the last prompt token, else 1."""
        return torch.where(self.first_positions(positions), first_token_weight, 1.0)

    def response_offsets(self, limit: int | None = None) -> torch.Tensor:
        """The offset `[n]` of each of `response_positions(limit)`; 0 predicts the first token."""
        counts = torch.bincount(self.response_chats(limit), minlength=len(self.index))
        return torch.cat([torch.arange(count) for count in counts.tolist()])

    def common_prompt_suffix(self, other: ChatBatch) -> list[int]:
        """For each chat, how many tokens before the last one the prompts of both batches share."""
        shared = []
        for number in range(len(self.index)):
            one, two = self._prompt(number), other._prompt(number)
            same = 0
            while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
                same += 1
            shared.append(max(same - 1, 0))
        return shared

    def _prompt(self, number: int) -> list[int]:
        """The tokens of a chat's prompt behind the shared beginning."""
        row, begin, start = self.rows[number], self.begins[number], self.starts[number]
        return [int(token) for token in self.ids[row, begin:start]]

    def select(self, rows: Sequence[int]) -> ChatBatch:
        """Some of the rows of a padded batch, padded to the longest of them."""
        ends = tuple(self.ends[row] for row in rows)
        return ChatBatch(
            tuple(self.index[row] for row in rows),
            self.ids[list(rows), : max(ends)],
            tuple(range(len(rows))),
            (0,) * len(rows),
            tuple(self.starts[row] for row in rows),
            ends,
            (0,) * len(rows),
            prefills=tuple(self.prefills[row] for row in rows) if self.prefills else (),
        )

    def counterpart(self, chats: Sequence[TokenizedChat], pad: int) -> ChatBatch:
        """The chats of another set with the same `index`, in the same order, padded."""
        return pad_right(self.index, chats, pad)


def pad_right(index: Sequence[int], chats: Sequence[TokenizedChat], pad: int) -> ChatBatch:
    """Some chats of a set in a padded batch."""
    chosen = [chats[i] for i in index]
    ends = tuple(len(chat.ids) for chat in chosen)
    ids = torch.full((len(chosen), max(ends)), pad)
    for row, chat in enumerate(chosen):
        ids[row, : len(chat.ids)] = torch.tensor(chat.ids)
    starts = tuple(chat.start for chat in chosen)
    rows, zeros = tuple(range(len(chosen))), (0,) * len(chosen)
    prefills = tuple(chat.prefill for chat in chosen)
    return ChatBatch(tuple(index), ids, rows, zeros, starts, ends, zeros, prefills=prefills)


def pack(
    index: Sequence[int], chats: Sequence[TokenizedChat], pad: int, row_tokens: int = ROW_TOKENS
) -> ChatBatch:
    """Some chats of a set in a packed batch; each row has at most `row_tokens`, or one chat.

    Chats share rows where they begin with the same `MIN_SHARED` tokens.
    """
    chosen = [chats[i] for i in index]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, chat in enumerate(chosen):
        groups.setdefault(chat.ids[:MIN_SHARED], []).append(number)
    places: dict[int, tuple[int, int, int]] = {}  # row, begin and shared tokens of each chat
    filled: list[int] = []
    for group in groups.values():
        prompts = [chosen[number].ids[: chosen[number].start] for number in group]
        shared = shared_beginning(prompts)
        sizes = {number: len(chosen[number].ids) - shared for number in group}
        # A long beginning is shared by as many chats as make up for it.
        limit = shared + max(row_tokens - shared, 3 * shared, *sizes.values())
        rows: list[int] = []
        # First fit, in descending order of length.
        for number in sorted(group, key=lambda one: -sizes[one]):
            fitting = (row for row in rows if filled[row] + sizes[number] <= limit)
            row = next(fitting, len(filled))
            if row == len(filled):
                rows.append(row)
                filled.append(shared)
            places[number] = row, filled[row], shared
            filled[row] += sizes[number]
    ids = torch.full((len(filled), max(filled)), pad)
    starts, ends = [], []
    for number, chat in enumerate(chosen):
        row, begin, shared = places[number]
        end = begin + len(chat.ids) - shared
        ids[row, :shared] = torch.tensor(chat.ids[:shared])
        ids[row, begin:end] = torch.tensor(chat.ids[shared:])
        starts.append(begin + chat.start - shared)
        ends.append(end)
    placed = [places[number] for number in range(len(chosen))]
    return ChatBatch(
        tuple(index),
        ids,
        tuple(row for row, _, _ in placed),
        tuple(begin for _, begin, _ in placed),
        tuple(starts),
        tuple(ends),
        tuple(shared for _, _, shared in placed),
        packed=True,
        prefills=tuple(chat.prefill for chat in chosen),
    )


def make_batches(
    chats: Sequence[TokenizedChat], size: int, pad: int, max_tokens: int | None = None
) -> list[ChatBatch]:
    """Split chats into padded batches of at most `size` rows and `max_tokens` padded tokens.

    Chats of similar length share a batch; one that is longer than `max_tokens` runs alone.
    """
    return [
        pad_right(index, chats, pad) for index in divide(chats, range(len(chats)), size, max_tokens)
    ]


def divide(
    chats: Sequence[TokenizedChat], index: Sequence[int], size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """The numbers `index` of some chats by batch, as `make_batches` has it."""
    groups: list[list[int]] = []
    # In ascending order: the next chat is the longest of its batch.
    for i in sorted(index, key=lambda i: (len(chats[i].ids), i)):
        limit = size if max_tokens is None else min(size, max_tokens // len(chats[i].ids))
        if not groups or len(groups[-1]) >= limit:
            groups.append([])
        groups[-1].append(i)
    return groups


def shuffled_forever(items: Sequence[Item], rng: random.Random) -> Iterator[Item]:
    """The items without end, in a new order in every epoch; nothing if there are none."""
    while items:
        yield from rng.sample(items, len(items))
