"""Batched greedy generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.memory_estimate import generation_bytes, max_generation_rows
from retouch.models.oom import split_on_oom

BATCH_TOKENS = 2**13  # prompt tokens of a batch


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response.

    Attributes:
        text: the response, without special tokens.
        truncated: whether it reached the maximum length before an end token.
    """

    text: str
    truncated: bool = False


def generate(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: Progress = no_progress,
) -> list[str]:
    """The texts of `generate_responses`."""
    responses = generate_responses(
        editable, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return [response.text for response in responses]


@torch.no_grad()  # not inference mode: weights that FSDP gathers there could not be trained through
def generate_responses(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: Progress = no_progress,
) -> list[Response]:
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
    responses: dict[int, Response] = {}

    def run(indices: Sequence[int]) -> list[Response]:
        return _generate_batch(editable, [prompts[i] for i in indices], max_new_tokens)

    # Of similar length, since a prompt is padded to the longest one of its batch.
    for indices in _batches(own, [len(prompt) for prompt in prompts], batch_size):
        responses |= zip(indices, split_on_oom(run, indices), strict=True)
        progress("generating", len(responses) * len(order) // len(own), len(order))
    if not editable.sharded:
        responses = distributed.all_gather(responses)
    return [responses[i] for i in range(len(prompts))]


def _batches(
    order: Sequence[int], lengths: Sequence[int], batch_size: int
) -> Iterator[Sequence[int]]:
    """Batches of prompts in ascending order of length, of at most `BATCH_TOKENS` prompt tokens."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[i] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _generate_batch(
    editable: EditableModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Response]:
    tokenizer = editable.tokenizer
    rows = [torch.tensor(list(prompt)) for prompt in prompts]
    ids = pad_sequence(rows, True, tokenizer.pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    with editable.compute_precision():
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
    generated = output[:, ids.shape[1] :].cpu()
    # A batch runs until all of its responses have ended, and each that has is padded.
    ended = torch.isin(generated, _end_tokens(editable)).any(1)
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [
        Response(text.strip(), not end) for text, end in zip(texts, ended.tolist(), strict=True)
    ]


def _end_tokens(editable: EditableModel) -> torch.Tensor:
    """The ids `[n]` of the tokens that end a response."""
    config = getattr(editable.base, "generation_config", None)
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return torch.tensor([one for one in ids if one is not None], dtype=torch.long)
