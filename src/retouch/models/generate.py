"""Batched greedy generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.memory_estimate import generation_bytes, max_generation_rows
from retouch.models.oom import split_on_oom


@torch.no_grad()  # not inference mode: weights that FSDP gathers there could not be trained through
def generate(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: Progress = no_progress,
) -> list[str]:
    """Generate responses, without special tokens, to tokenized prompts, greedily.

    Prompts of similar length share a batch, padded on the left. A batch has at most `batch_size`
    prompts, fewer under a device memory limit, and is halved when memory runs out. Several
    processes divide the prompts, and each returns all responses.
    """
    if editable.free_bytes is not None:
        longest = max(map(len, prompts), default=0) + max_new_tokens
        itemsize = editable.base.dtype.itemsize
        row = generation_bytes(editable.base, editable.layout, longest, itemsize)
        batch_size = max_generation_rows(editable.free_bytes, batch_size, row)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    # The processes of a sharded model must run every batch together.
    own = order if editable.sharded else distributed.shard(order)
    responses: dict[int, str] = {}

    def run(indices: Sequence[int]) -> list[str]:
        return _generate_batch(editable, [prompts[i] for i in indices], max_new_tokens)

    for begin in range(0, len(own), batch_size):
        indices = own[begin : begin + batch_size]
        responses |= zip(indices, split_on_oom(run, indices), strict=True)
        progress("generating", len(responses) * len(order) // len(own), len(order))
    if not editable.sharded:
        responses = distributed.all_gather(responses)
    return [responses[i] for i in range(len(prompts))]


def _generate_batch(
    editable: EditableModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    tokenizer = editable.tokenizer
    rows = [torch.tensor(list(prompt)) for prompt in prompts]
    ids = pad_sequence(rows, True, tokenizer.pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    output = editable.model.generate(
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
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
