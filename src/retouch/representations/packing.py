"""Whether a model computes packed chats as it computes each of them alone."""

from __future__ import annotations

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import MIN_SHARED, pack, pad_right

TOLERANCE = 0.01  # of the states' norm: rounding, but not another chat's tokens


@torch.no_grad()
def supports_packing(editable: EditableModel) -> bool:
    """Run two short texts packed and padded, and compare the last states.

    A model with a state that runs from token to token, or with a mask of its own, does not.
    """
    first = tuple(range(1, MIN_SHARED + 1))
    size = int(editable.model.config.get_text_config().vocab_size)
    pairs = ((11, 7, 13, 5, 17), (3, 19, 2))
    chats = [TokenizedChat((*first, *(t % size for t in own)), len(first) + 2) for own in pairs]
    chats = [TokenizedChat(tuple(t % size for t in chat.ids), chat.start) for chat in chats]
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
