"""Adversarial suffixes: tokens after a request that make a model comply, found by gradient.

The greedy coordinate gradient of Zou et al. 2023, arXiv 2307.15043, for one request at a time: the
gradient with respect to the one-hot tokens of the suffix proposes replacements, and the best of
several suffixes that differ in one token is kept. It differs in two points: a suffix is never
replaced by a worse one, and the search ends as soon as greedy decoding generates the target.

The model is attacked as it is: its adapter and interventions act, and the prompt includes what they
add to it. Only suffixes that are reproduced from their text (tokenized again, they are the same
tokens) are considered, so that a user could type them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from retouch.concepts.chat import prompt_text
from retouch.core.errors import ModelError
from retouch.core.types import Message, Progress, no_progress
from retouch.evaluation.attack_targets import (
    TARGET_TOKENS,
    AttackOutcome,
    AttackTarget,
    responses_to,
)
from retouch.models.hooks import removing
from retouch.representations.logprobs import max_logit_tokens, token_logprobs

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

PLACEHOLDER = "\ue000"  # for the suffix while the chat is tokenized; occurs in no text
INITIAL_DRAWS = 64  # random suffixes to choose the initial one from


@dataclass(frozen=True)
class Suffix:
    """A suffix, and the target's mean log-probability per token with it, in nats."""

    text: str  # to append to the last user turn, with the space before it
    logprob: float
    initial_logprob: float  # with the random suffix that the search started from
    steps: int


@dataclass(frozen=True)
class SuffixContext:
    """The prompt around a suffix: its text, with the separator on the left, and its tokens."""

    left: str
    right: str
    separator: str
    before: list[int]
    after: list[int]


def gcg_attack(
    editable: EditableModel,
    targets: Sequence[AttackTarget],
    *,
    length: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[AttackOutcome]:
    """Search a suffix of `length` tokens for each request and generate the response to it.

    Raises:
        ModelError: no suffix can be searched on this model.
    """
    allowed = allowed_tokens(editable)
    prompts, steps = [], []
    for done, target in enumerate(targets, start=1):
        chat, prompt = target.tokenized(editable, TARGET_TOKENS), target.example.prompt
        goal = chat.ids[chat.start :]
        suffix = search_suffix(editable, prompt, goal, length=length, seed=seed, allowed=allowed)
        prompts.append(with_suffix(prompt, suffix.text))
        steps.append(suffix.steps)
        progress("searching suffixes", done, len(targets))
    responses = responses_to(editable, prompts)
    return [AttackOutcome(*one) for one in zip(targets, prompts, responses, steps, strict=True)]


def search_suffix(
    editable: EditableModel,
    prompt: Sequence[Message],
    target: Sequence[int],
    *,
    steps: int = 20,
    candidates: int = 32,
    length: int = 8,
    top_k: int = 64,
    seed: int = 0,
    allowed: torch.Tensor | None = None,
) -> Suffix:
    r"""Search the suffix $s$ that maximises $\frac1T \sum_t \log p(y_t | x, s, y_{<t})$.

    `target` are the token ids `[T]` of a response that complies, or of its beginning. In each of at
    most `steps` steps the gradient proposes `top_k` replacements for each of the `length` tokens,
    and `candidates` suffixes are evaluated. `allowed` are the tokens to use (default:
    `allowed_tokens`, which takes time to compute).

    Raises:
        ModelError: no suffix of this length is reproduced from its text, or the model's input does
            not contain the request exactly once.
    """
    rng = random.Random(f"{seed}:{list(target)}")
    tokens = allowed_tokens(editable) if allowed is None else allowed
    context, best = _initial_suffix(editable, prompt, tokens.tolist(), length, rng)
    target_ids = torch.tensor(list(target))
    (logprob,), (done,) = _evaluate(editable, context, [best], target_ids)
    initial, taken = logprob, 0
    while taken < steps and not done:
        taken += 1
        slopes = _gradient(editable, context, best, target_ids, tokens)
        proposed = tokens[slopes.topk(min(top_k, len(tokens)))[1]].tolist()
        neighbours = _neighbours(rng, best, proposed, candidates)
        tokenized = _tokenize(editable, context.left, context.right, neighbours)
        tried = [
            suffix
            for suffix, ids in zip(neighbours, tokenized, strict=True)
            if ids == [*context.before, *suffix, *context.after]
        ]
        if not tried:
            continue
        logprobs, generated = _evaluate(editable, context, tried, target_ids)
        at = max(range(len(tried)), key=logprobs.__getitem__)
        if logprobs[at] > logprob:
            best, logprob, done = tried[at], logprobs[at], generated[at]
    text = context.separator + _decode(editable, [best])[0]
    return Suffix(text, logprob, initial, taken)


def allowed_tokens(editable: EditableModel) -> torch.Tensor:
    """The tokens `[n]` of suffixes: printable, not special, and reproduced from their text."""
    tokenizer = editable.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    size = min(len(tokenizer), int(editable.model.config.get_text_config().vocab_size))
    tokens = [i for i in range(size) if i not in special]
    texts = _decode(editable, [[i] for i in tokens])
    retokenized = tokenizer(texts, add_special_tokens=False)["input_ids"]
    allowed = [
        token
        for token, text, ids in zip(tokens, texts, retokenized, strict=True)
        if ids == [token] and text.strip() and text.isprintable()
    ]
    return torch.tensor(allowed, dtype=torch.long)


def with_suffix(prompt: Sequence[Message], suffix: str) -> tuple[Message, ...]:
    """The prompt with a suffix after its last turn's text."""
    *turns, last = prompt
    return (*turns, replace(last, content=last.content + suffix))


def _initial_suffix(
    editable: EditableModel,
    prompt: Sequence[Message],
    tokens: list[int],
    length: int,
    rng: random.Random,
) -> tuple[SuffixContext, list[int]]:
    """A random suffix that is reproduced from its text within the prompt, and its context."""
    rewritten = editable.rewrite_prompt(with_suffix(prompt, PLACEHOLDER))
    parts = prompt_text(editable.tokenizer, rewritten).split(PLACEHOLDER)
    if len(parts) != 2:
        raise ModelError(
            f"The model's input contains the request {len(parts) - 1} times.",
            "A suffix can be searched where it occurs once.",
            code="suffix-request-repeated",
        )
    left, right = parts
    drawn = [rng.choices(tokens, k=length) for _ in range(INITIAL_DRAWS)] if tokens else []
    best: list[tuple[SuffixContext, list[int]]] = []
    # Some tokens include the space before them, others need one.
    for separator in ("", " "):
        found = []
        tokenized = _tokenize(editable, left + separator, right, drawn)
        for suffix, ids in zip(drawn, tokenized, strict=True):
            starts = [at for at in range(len(ids)) if ids[at : at + length] == suffix]
            if starts:
                before, after = ids[: starts[-1]], ids[starts[-1] + length :]
                context = SuffixContext(left + separator, right, separator, before, after)
                found.append((context, suffix))
        best = max(best, found, key=len)
    if not best:
        raise ModelError(
            f"No suffix of {length} tokens is reproduced from its text.",
            "Try another length.",
            code="suffix-not-reproduced",
        )
    return best[0]


def _tokenize(
    editable: EditableModel, left: str, right: str, suffixes: Sequence[list[int]]
) -> list[list[int]]:
    """The whole prompt with each suffix as text, tokenized as in `prompt_ids`."""
    if not suffixes:
        return []
    texts = [f"{left}{text}{right}" for text in _decode(editable, suffixes)]
    special = not editable.has_chat_template  # a template writes the special tokens itself
    ids: list[list[int]] = editable.tokenizer(texts, add_special_tokens=special)["input_ids"]
    return ids


def _decode(editable: EditableModel, suffixes: Sequence[list[int]]) -> list[str]:
    texts: list[str] = editable.tokenizer.batch_decode(suffixes, clean_up_tokenization_spaces=False)
    return texts


def _neighbours(
    rng: random.Random, best: list[int], proposed: list[list[int]], count: int
) -> list[list[int]]:
    """Suffixes that differ from the best in one token, the positions in turn."""
    found = set()
    for i in range(count):
        position = i % len(best)
        token = rng.choice(proposed[position])
        found.add((*best[:position], token, *best[position + 1 :]))
    return [list(suffix) for suffix in sorted(found) if list(suffix) != best]


@torch.no_grad()
def _evaluate(
    editable: EditableModel,
    context: SuffixContext,
    suffixes: Sequence[list[int]],
    target: torch.Tensor,
) -> tuple[list[float], list[bool]]:
    """The target's mean log-probability after each suffix, and whether greedy decoding gives it."""
    ids = torch.stack([_ids(context, suffix, target) for suffix in suffixes])
    logprobs: list[float] = []
    generated: list[bool] = []
    batch_size = max(1, max_logit_tokens(editable) // ids.shape[1])
    for at in range(0, len(ids), batch_size):
        part = ids[at : at + batch_size]
        logits = _target_logits(editable, part, len(target))
        tokens = target.to(logits.device).expand(len(part), -1)
        logprobs += token_logprobs(logits, tokens).mean(1).tolist()
        generated += (logits.argmax(-1) == tokens).all(1).tolist()
    return logprobs, generated


def _gradient(
    editable: EditableModel,
    context: SuffixContext,
    suffix: list[int],
    target: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the target's log-probability by the suffix's one-hot tokens.

    It is the product of the gradient at an embedding with the embeddings of `tokens`; the embedding
    is read by a hook, since some models scale it.

    Returns:
        `[length, tokens]`.
    """
    embed = editable.model.get_input_embeddings()
    embedded: list[torch.Tensor] = []

    def make_leaf(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    with removing([embed.register_forward_hook(make_leaf)]), torch.enable_grad():
        logits = _target_logits(editable, _ids(context, suffix, target)[None], len(target))
        logprob = token_logprobs(logits[0], target).mean()
        (slope,) = torch.autograd.grad(logprob, embedded)
    first = len(context.before)
    with torch.no_grad():
        embeddings = embed(tokens.to(editable.device)).float()
        gradient: torch.Tensor = slope[0, first : first + len(suffix)].float() @ embeddings.T
    return gradient.cpu()


def _ids(context: SuffixContext, suffix: list[int], target: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.tensor([*context.before, *suffix, *context.after]), target])


def _target_logits(editable: EditableModel, ids: torch.Tensor, length: int) -> torch.Tensor:
    """The logits `[rows, length, vocabulary]` that predict the last `length` tokens."""
    logits: torch.Tensor = editable.model(input_ids=ids.to(editable.device), use_cache=False).logits
    return logits[:, -length - 1 : -1]
