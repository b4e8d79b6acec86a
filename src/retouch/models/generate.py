"""Batched generation, greedy or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from retouch.core import thoughts
from retouch.core.end_token import end_token
from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.memory_estimate import generation_bytes, max_generation_rows
from retouch.models.oom import split_on_oom
from retouch.models.shared_beginning import MIN_SHARED, shared_beginning

BATCH_SIZE = 128
BATCH_TOKENS = 2**13  # prompt tokens of a batch
# Prompts with the same beginning that get batches of their own. A step of a small batch takes
# nearly as long as one of a large batch, so that fewer prompts gain nothing from what they share.
MIN_GROUP = 64


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token of a response is chosen.

    Attributes:
        top_k: sample from so many of the most likely tokens, at temperature 1; 0 takes the most
            likely one.
        branch: sample the first token alone, all `top_k` with the same probability, and take the
            most likely one from there on (Wang & Zhou 2024, arXiv 2402.10200).
        seed: of the samples of each batch.
        min_new_tokens: least number of tokens of a response.
    """

    top_k: int = 0
    branch: bool = False
    seed: int = 0
    min_new_tokens: int = 0


GREEDY = Decoding()


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response.

    Attributes:
        text: the response, without special tokens other than the markers of a thought. It begins
            with the opening one, also where the prompt ends in it.
        truncated: whether it reached the maximum length before an end token.
    """

    text: str
    truncated: bool = False


def generate(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = BATCH_SIZE,
    share_beginning: bool = True,
    decoding: Decoding = GREEDY,
    progress: Progress = no_progress,
) -> list[str]:
    """The texts of `generate_responses`."""
    responses = generate_responses(
        editable,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        share_beginning=share_beginning,
        decoding=decoding,
        progress=progress,
    )
    return [response.text for response in responses]


@torch.no_grad()  # not inference mode: weights that FSDP gathers there could not be trained through
def generate_responses(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = BATCH_SIZE,
    share_beginning: bool = True,
    decoding: Decoding = GREEDY,
    progress: Progress = no_progress,
    on_batch: Callable[[dict[int, Response]], None] | None = None,
    known: Mapping[int, Response] | None = None,
) -> list[Response]:
    """Generate responses, without special tokens, to tokenized prompts.

    Prompts of similar length share a batch, padded on the left. A batch has at most `batch_size`
    prompts, fewer under a device memory limit, and is halved when memory runs out. Several
    processes divide the prompts, and each returns all responses.

    Args:
        editable: the model as it is now.
        prompts: token ids.
        max_new_tokens: maximum length of a response.
        batch_size: maximum number of prompts of a batch.
        share_beginning: run the beginning that the prompts of a batch have in common once; not
            where something acts on the positions of whole prompts.
        decoding: how the next token is chosen (default: greedily).
        progress: called after every batch.
        on_batch: receives the responses of every batch of this process, by the prompt's number.
        known: responses of an earlier call with the same prompts, by the prompt's number. A batch
            that is known as a whole is not run; the others have the same prompts as they had then.
    """
    known = known or {}
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
        chosen = [prompts[i] for i in indices]
        return _generate_batch(editable, chosen, max_new_tokens, share_beginning, decoding)

    for indices in _batches(own, prompts, batch_size, share_beginning):
        if known.keys() >= set(indices):
            responses |= {i: known[i] for i in indices}
        else:
            made = dict(zip(indices, split_on_oom(run, indices), strict=True))
            responses |= made
            if on_batch:
                on_batch(made)
        progress("generating", len(responses) * len(order) // len(own), len(order))
    if not editable.sharded:
        responses = distributed.all_gather(responses)
    return [responses[i] for i in range(len(prompts))]


def _batches(
    order: Sequence[int], prompts: Sequence[Sequence[int]], batch_size: int, share_beginning: bool
) -> Iterator[Sequence[int]]:
    """Batches of at most `BATCH_TOKENS` padded prompt tokens, from prompts sorted by length.

    Many prompts with the same beginning, such as a system turn, run together and share its states.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in order if share_beginning else ():
        groups.setdefault(tuple(prompts[i][:MIN_SHARED]), []).append(i)
    alike = [group for group in groups.values() if len(group) >= MIN_GROUP]
    together = {i for group in alike for i in group}
    for group in (*alike, [i for i in order if i not in together]):
        batch: list[int] = []
        for i in group:
            full = len(batch) == batch_size or (len(batch) + 1) * len(prompts[i]) > BATCH_TOKENS
            if batch and full:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


def _generate_batch(
    editable: EditableModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    share_beginning: bool,
    decoding: Decoding,
) -> list[Response]:
    tokenizer, ends = editable.tokenizer, _end_tokens(editable)
    shared = shared_beginning(prompts) if share_beginning else 0
    with editable.compute_precision():
        cache = _cache_beginning(editable, prompts[0][:shared], len(prompts)) if shared else None
        shared = shared if cache is not None else 0
        # Padding between the shared beginning and the rest, whose positions skip it.
        rows = [torch.tensor(list(prompt[shared:])) for prompt in prompts]
        ids = pad_sequence(rows, True, tokenizer.pad_token_id, "left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
        beginning = torch.tensor([list(prompt[:shared]) for prompt in prompts], dtype=torch.long)
        ids = torch.cat([beginning, ids], 1)
        mask = torch.cat([torch.ones_like(beginning), mask], 1)
        with _plain_generation_config(editable), _seeded(editable, decoding.seed):
            output = editable.model.generate(
                input_ids=ids.to(editable.device),
                attention_mask=mask.to(editable.device),
                max_new_tokens=max_new_tokens,
                min_new_tokens=decoding.min_new_tokens or None,
                do_sample=decoding.top_k > 0,
                **_sampling(decoding, ids.shape[1]),
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
                synced_gpus=editable.sharded,
                **({} if cache is None else {"past_key_values": cache}),
            )
    generated = output[:, ids.shape[1] :].cpu()
    # A batch runs until all of its responses have ended, and each that has is padded.
    ended = torch.isin(generated, torch.tensor(ends)).any(1)
    texts = _decode(tokenizer, generated)
    return [
        Response(opening + text.strip(), not end)
        for opening, text, end in zip(
            _openings(tokenizer, prompts), texts, ended.tolist(), strict=True
        )
    ]


@contextmanager
def _plain_generation_config(editable: EditableModel) -> Iterator[None]:
    """Replace a model's generation configuration inside the context by transformers' defaults.

    A model comes with one of its own, such as a repetition penalty, which would fill in what a call
    leaves out: a response would not be the greedy one.
    """
    from transformers import GenerationConfig

    # PEFT sets the base model's to that of the wrapper.
    models = [one for one in (editable.model, editable.base) if hasattr(one, "generation_config")]
    kept = [one.generation_config for one in models]
    for model in models:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for model, config in zip(models, kept, strict=True):
            model.generation_config = config


def _sampling(decoding: Decoding, prompt_tokens: int) -> dict[str, Any]:
    """The arguments of transformers' `generate` for sampling, none for greedy decoding."""
    if not decoding.top_k:
        return {}

    def branch(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        choices = decoding.top_k if ids.shape[1] == prompt_tokens else 1
        kept = scores.topk(choices).indices
        return torch.full_like(scores, -torch.inf).scatter(1, kept, 0.0)

    return {"top_k": decoding.top_k, **({"logits_processor": [branch]} if decoding.branch else {})}


@contextmanager
def _seeded(editable: EditableModel, seed: int) -> Iterator[None]:
    """Seed torch's random generators inside the context, and restore them."""
    device = editable.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _decode(tokenizer: Any, generated: torch.Tensor) -> list[str]:
    """The texts without special tokens other than those that delimit a thought."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {one: str(token) for one, token in added.items() if token.special}
    kept = thoughts.kept_tokens(frozenset(special.values()))
    texts: list[str]
    if not kept:
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        return texts
    skipped = {
        one for one in {*special, *tokenizer.all_special_ids} if special.get(one) not in kept
    }
    rows = [[one for one in row if one not in skipped] for row in generated.tolist()]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=False)
    return texts


def _openings(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    """The marker of a thought that the chat template opens at the end of each prompt."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    if not thoughts.mentions_thought(template):
        return [""] * len(prompts)
    # What follows the last token that the template adds; a user's text is before it.
    tokens = tokenizer.added_tokens_decoder.items()
    added = {one for one, token in tokens if not thoughts.mentions_thought(str(token))}
    found = []
    for prompt in prompts:
        last = max((i for i, one in enumerate(prompt) if one in added), default=-1)
        turn = tokenizer.decode(list(prompt[last + 1 :]), skip_special_tokens=False)
        marker = thoughts.open_thought(turn)
        found.append(f"{marker}\n" if marker else "")
    return found


def _cache_beginning(editable: EditableModel, ids: Sequence[int], rows: int) -> Any:
    """The keys and values of a beginning, for all rows; None where the model has no such cache."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if editable.sharded or editable.interventions:
        return None  # steering acts on the positions of a whole prompt
    inputs = torch.tensor([list(ids)], device=editable.device)
    output = editable.model(input_ids=inputs, use_cache=True)
    cache: Any = getattr(output, "past_key_values", None)
    # Windows, recurrent states and caches of a model's own are not divided.
    plain = isinstance(cache, DynamicCache) and {type(one) for one in cache.layers} == {
        DynamicLayer
    }
    if not plain:
        return None
    cache.batch_repeat_interleave(rows)
    return cache


def _end_tokens(editable: EditableModel) -> list[int]:
    """The ids of the tokens that end a response: the model's, and the chat template's."""
    config = getattr(editable.base, "generation_config", None)
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return sorted({one for one in ids if one is not None} | {end_token(editable.tokenizer)})
