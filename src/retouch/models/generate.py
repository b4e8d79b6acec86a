"""Batched greedy generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.oom import split_on_oom


@torch.no_grad()  # no inference mode: sharded weights that it made could not be trained through
def generate(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: Progress = no_progress,
) -> list[str]:
    """Greedy responses to tokenized prompts: what follows them, special tokens left out.

    Prompts of like length share a batch, padded on the left; the responses keep the prompts' order.
    Several processes share the prompts out, and all have all responses. Where memory runs out, a
    batch is halved.
    """
    if editable.free_bytes is not None:
        longest = max(map(len, prompts), default=0) + max_new_tokens
        row = _row_bytes(editable, longest)
        batch_size = rows_together(editable.free_bytes, batch_size, row)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    # Those that have a part of the model each must all run every batch.
    ours = order if editable.sharded else distributed.shard(order)
    responses: dict[int, str] = {}

    def run(rows: Sequence[int]) -> list[str]:
        return _responses(editable, [prompts[i] for i in rows], max_new_tokens)

    for begin in range(0, len(ours), batch_size):
        rows = ours[begin : begin + batch_size]
        responses |= zip(rows, split_on_oom(run, rows), strict=True)
        progress("generating", len(responses) * len(order) // len(ours), len(order))
    if not editable.sharded:
        responses = distributed.all_gather(responses)
    return [responses[i] for i in range(len(prompts))]


def rows_together(room: int | None, most: int, row: int) -> int:
    """How many rows response together: at most `most`, and `row` bytes each in half of the room."""
    return most if room is None else max(1, min(most, room // (2 * row)))


def row_bytes(blocks: int, hidden: int, vocabulary: int, tokens: int, itemsize: int) -> int:
    """What a row takes while it responses, at the most: keys, values, and logits in float32."""
    return 2 * blocks * hidden * tokens * itemsize + 3 * 4 * vocabulary


def _row_bytes(editable: EditableModel, tokens: int) -> int:
    config = editable.model.config.get_text_config()
    shape = (int(config.num_hidden_layers), int(config.hidden_size), int(config.vocab_size))
    return row_bytes(*shape, tokens, editable.model.dtype.itemsize)


def _responses(
    editable: EditableModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The responses to the prompts of one batch."""
    tokenizer = editable.tokenizer
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    out = editable.model.generate(
        input_ids=ids.to(editable.device),
        attention_mask=mask.to(editable.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id,
        synced_gpus=editable.sharded,
    )
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]
