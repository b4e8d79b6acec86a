"""Pack chats into rows where the model computes them as it computes each of them alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.models.shared_beginning import MIN_SHARED
from retouch.representations.batch import ChatBatch, pack, pad_right

TOLERANCE = 0.01  # of the states' norm: rounding, but not another chat's tokens


class Packer:
    """Makes batches of chats for one model, packed if the model supports it.

    Attributes:
        packed: whether batches are packed.
    """

    def __init__(self, editable: EditableModel, *, packed: bool | None = None) -> None:
        """Find out whether the model supports packing, or take `packed` for it."""
        self._editable = editable
        self.packed = supports_packing(editable) if packed is None else packed
        config = editable.model.config.get_text_config()
        windows = (getattr(config, name, None) for name in WINDOWS)
        # The mask of packed chats replaces that of a window, which shorter chats do not notice.
        self._window = min((size for size in windows if size), default=None)

    def divide(self, chats: Sequence[TokenizedChat], size: int, seed: int) -> list[list[int]]:
        """The numbers of the chats of each batch: mixed where they are packed, else by length."""
        order = sorted(range(len(chats)), key=lambda i: (len(chats[i].ids), i))
        if self.packed:
            random.Random(seed).shuffle(order)
        return [order[begin : begin + size] for begin in range(0, len(order), size)]

    def batch(self, index: Sequence[int], chats: Sequence[TokenizedChat]) -> ChatBatch:
        """Some chats of a set as one batch; padded if one of them is longer than a window."""
        longest = max(len(chats[i].ids) for i in index)
        fits = self._window is None or longest <= self._window
        make = pack if self.packed and fits else pad_right
        return make(index, chats, int(self._editable.tokenizer.pad_token_id))

    def arguments(self, batch: ChatBatch) -> dict[str, Any]:
        """The model's arguments for a batch besides the ids."""
        return batch.packing(self._editable.base.dtype, self._editable.device)


WINDOWS = ("sliding_window", "attention_chunk_size")  # transformers' names in a configuration


@torch.no_grad()
def supports_packing(editable: EditableModel) -> bool:
    """Run two short texts packed and padded, and compare the last states.

    A model with a state that runs from token to token, or with a mask of its own, does not.
    """
    first = tuple(range(1, MIN_SHARED + 1))
    size = int(editable.model.config.get_text_config().vocab_size)
    pairs = ((11, 7, 13, 5, 17), (3, 19, 2))
    chats = [
        TokenizedChat(tuple(token % size for token in (*first, *own)), len(first) + 2)
        for own in pairs
    ]
    last = editable.layout.depth - 1
    segment = Segment(editable, last, last)
    states = []
    for make in (pack, pad_right):
        batch = make(range(len(chats)), chats, 0)
        extra = batch.packing(editable.base.dtype, editable.device)
        try:
            found = segment.forward_states(batch.ids, (last,), extra)[last]
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False  # the model takes no such mask
        states.append(found[batch.response_positions()].float())
    packed, padded = states
    return bool((packed - padded).norm() <= TOLERANCE * padded.norm())
