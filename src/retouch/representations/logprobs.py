"""Log-probabilities of responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.editable_model import EditableModel
from retouch.models.oom import split_on_oom
from retouch.models.shared_beginning import MIN_SHARED
from retouch.representations.batch import ChatBatch, divide, pad_right
from retouch.representations.packing import Packer

MIN_PACKED = 4  # responses to a prompt: fewer in a pass use the processor worse than padded ones do
_MAX_LOGITS = 2**28  # logits in memory at a time: 1 GiB in float32
FLOAT32_BYTES = 4

MakeBatch = Callable[[Sequence[int], Sequence[TokenizedChat]], ChatBatch]


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    r"""$\log p(y_t | x, y_{<t})$ of tokens `[...]` under logits `[..., vocabulary]`, in nats.

    In float32, for logits of any dtype; gradients flow.
    """
    tokens = tokens.to(logits.device)
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def response_logprobs(logits: torch.Tensor, batch: ChatBatch) -> torch.Tensor:
    """Log-probabilities `[n]` of a batch's response tokens, at `batch.response_positions()`.

    Args:
        logits: `[rows, tokens, vocabulary]`.
        batch: the batch that they are of.
    """
    rows, positions = (index.to(logits.device) for index in batch.response_positions())
    return token_logprobs(logits[rows, positions], batch.response_tokens())


def sum_by_chat(values: torch.Tensor, batch: ChatBatch) -> torch.Tensor:
    """Sums `[chats]` of values `[n]` at `batch.response_positions()`."""
    chats = batch.response_chats().to(values.device)
    return torch.zeros(len(batch.index), device=values.device).index_add(0, chats, values)


def mean_by_chat(values: torch.Tensor, batch: ChatBatch) -> torch.Tensor:
    """Means `[chats]` of values `[n]` at `batch.response_positions()`."""
    counts = torch.bincount(batch.response_chats(), minlength=len(batch.index))
    mean: torch.Tensor = sum_by_chat(values, batch) / counts.to(values.device)
    return mean


def batch_logprob(editable: EditableModel, batch: ChatBatch) -> torch.Tensor:
    """Mean log-probability of each response of a batch `[chats]`, nats a token; gradients flow."""
    return mean_by_chat(response_logprobs(_batch_logits(editable, batch), batch), batch)


def _batch_logits(editable: EditableModel, batch: ChatBatch) -> torch.Tensor:
    """The logits `[rows, tokens, vocabulary]` of a batch."""
    extra = batch.packing(editable.base.dtype, editable.device)
    ids = batch.ids.to(editable.device)
    logits: torch.Tensor = editable.model(input_ids=ids, use_cache=False, **extra).logits
    return logits


@torch.no_grad()
def response_logprob(
    editable: EditableModel, chats: Sequence[TokenizedChat], batch_size: int = 64
) -> torch.Tensor:
    """Mean log-probability of each chat's response `[chats]`, nats a token, on the CPU.

    Several responses to one prompt, such as the choices of a question, are packed: the prompt is
    computed once. Those of one token are read from the same prediction.
    """
    out = torch.zeros(len(chats))
    pad, max_tokens = int(editable.tokenizer.pad_token_id), max_logit_tokens(editable)
    tokens = _one_token_responses(chats)
    for index in divide(chats, list(tokens), batch_size, max_tokens):

        def predict(some: Sequence[int]) -> list[torch.Tensor]:
            logits = _batch_logits(editable, batch := pad_right(some, chats, pad))
            at = batch.response_positions()
            return list(logits[at[0].to(logits.device), at[1].to(logits.device)])

        for first, logits in zip(index, split_on_oom(predict, index), strict=True):
            ids = torch.tensor([chats[i].ids[-1] for i in tokens[first]])
            out[tokens[first]] = token_logprobs(logits.expand(len(ids), -1), ids).cpu()
    read = {i for same in tokens.values() for i in same}
    rest = [i for i in range(len(chats)) if i not in read]
    together = _same_prompt(chats, rest, batch_size)
    packer = Packer(editable, packed=None if together else False)
    if not packer.packed:
        together = []
    packed = {i for index in together for i in index}
    alone = [i for i in rest if i not in packed]
    padded = divide(chats, alone, batch_size, max_tokens)
    batches: list[tuple[list[int], MakeBatch]]
    batches = [(index, partial(pad_right, pad=pad)) for index in padded]
    batches += [(index, packer.batch) for index in together]
    for index, make in batches:

        def run(some: Sequence[int], make: MakeBatch = make) -> list[float]:
            values: list[float] = batch_logprob(editable, make(some, chats)).tolist()
            return values

        out[index] = torch.tensor(split_on_oom(run, index))
    return out


def _one_token_responses(chats: Sequence[TokenizedChat]) -> dict[int, list[int]]:
    """The numbers of chats with the same prompt and a response of one token, by the first one's."""
    short = [i for i, chat in enumerate(chats) if len(chat.ids) == chat.start + 1]
    return {group[0]: group for group in _by_prompt(chats, short) if len(group) > 1}


def _same_prompt(
    chats: Sequence[TokenizedChat], index: Iterable[int], size: int
) -> list[list[int]]:
    """Numbers of chats with the same prompt, at most `size` at a time, where packing pays."""
    long = [i for i in index if chats[i].start >= MIN_SHARED]
    parts = [
        group[begin : begin + size]
        for group in _by_prompt(chats, long)
        for begin in range(0, len(group), size)
    ]
    return [part for part in parts if len(part) >= MIN_PACKED]


def _by_prompt(chats: Sequence[TokenizedChat], index: Iterable[int]) -> list[list[int]]:
    """The numbers `index` of chats, those with the same prompt together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in index:
        groups.setdefault(chats[i].ids[: chats[i].start], []).append(i)
    return list(groups.values())


def max_logit_tokens(editable: EditableModel) -> int:
    """The maximum number of tokens whose logits are in memory at a time."""
    vocabulary = int(editable.model.config.get_text_config().vocab_size)
    return logit_tokens(editable.free_bytes, vocabulary)


def logit_tokens(free_bytes: int | None, vocabulary: int) -> int:
    """The same for `free_bytes` of the device (None: no limit is set).

    A quarter of the free memory, since two models are compared that have logits and probabilities.
    """
    limit = _MAX_LOGITS if free_bytes is None else free_bytes // (4 * FLOAT32_BYTES)
    return max(1, min(_MAX_LOGITS, limit) // vocabulary)
