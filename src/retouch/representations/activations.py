"""Hidden states of tokenized chats: with logits and gradients, or read at response positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import record_activations
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, make_batches

BATCH_SIZE = 32


def forward_with_states(
    editable: EditableModel, ids: torch.Tensor, layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Run the whole model on token ids `[rows, tokens]`; gradients flow.

    Returns:
        The outputs `[rows, tokens, hidden]` by layer, and the logits `[rows, tokens, vocabulary]`.
    """
    with record_activations(editable, layers, gradients=True) as states:
        logits = editable.model(input_ids=ids.to(editable.device), use_cache=False).logits
    return states, logits


@torch.no_grad()
def response_states(
    editable: EditableModel, chats: Sequence[TokenizedChat], layers: Sequence[int], positions: int
) -> Iterator[tuple[ChatBatch, torch.Tensor, dict[int, torch.Tensor]]]:
    """The states at the first response positions of chats, batch by batch, as the model is now.

    Args:
        editable: the model.
        chats: tokenized chats with responses.
        layers: whose outputs are read.
        positions: how many positions are read, from the last prompt token on.

    Yields:
        The batch, the row `[n]` of each state, and the states `[n, hidden]` by layer.
    """
    last = max(layers)
    segment = Segment(editable, last, last)
    for batch in make_batches(chats, BATCH_SIZE, int(editable.tokenizer.pad_token_id)):
        states = segment.forward_states(batch.ids, layers)
        at = batch.response_positions(positions)
        yield batch, at[0], {layer: states[layer][at] for layer in layers}
