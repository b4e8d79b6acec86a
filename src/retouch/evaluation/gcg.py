"""Adversarial suffixes: tokens after a request that make a model comply, found by gradient.

The greedy coordinate gradient of Zou et al. 2023, arXiv 2307.15043, for one request at a time: the
gradient with respect to the one-hot tokens of the suffix proposes replacements, and the best of
several suffixes that differ in one token is kept. It differs in two points: a suffix is never
replaced by a worse one, and the search ends as soon as greedy decoding generates the target.

The model is attacked as it is: its adapter and interventions act, and the prompt includes what they
add to it. Only suffixes that are reproduced from their text are considered, so that a user could
type them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from retouch.concepts.chat import prompt_ids
from retouch.core.types import Message, Progress, no_progress
from retouch.evaluation.attack_targets import TARGET_TOKENS, AttackOutcome, AttackTarget
from retouch.evaluation.suffix_tokens import (
    SuffixContext,
    allowed_tokens,
    decode,
    initial_suffix,
    reproduced,
    with_suffix,
)
from retouch.models.generate import generate
from retouch.models.hooks import removing
from retouch.representations.logprobs import max_logit_tokens, token_logprobs

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel


@dataclass(frozen=True)
class Suffix:
    """A suffix and its effect.

    Attributes:
        text: the text to append to the last user turn, with the space before it.
        logprob: mean log-probability of the target's tokens with it, in nats.
        initial_logprob: the same with the random suffix that the search started from.
        steps: the number of steps taken.
    """

    text: str
    logprob: float
    initial_logprob: float
    steps: int

    def append_to(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        """The prompt with the suffix."""
        return with_suffix(prompt, self.text)


def gcg_attack(
    editable: EditableModel,
    targets: Sequence[AttackTarget],
    *,
    steps: int = 20,
    candidates: int = 32,
    length: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[AttackOutcome]:
    """Search a suffix for each request and generate the response to it.

    Args:
        editable: the model, attacked as it is now.
        targets: the requests.
        steps: maximum number of gradient steps for each.
        candidates: suffixes evaluated per step.
        length: tokens of a suffix.
        seed: of the initial suffix and of the candidates.
        progress: called after every request.

    Raises:
        ModelError: no suffix can be searched on this model.
    """
    allowed = allowed_tokens(editable)
    prompts, taken = [], []
    for done, target in enumerate(targets, start=1):
        chat = target.tokenized(editable, TARGET_TOKENS)
        suffix = search_suffix(
            editable,
            target.example.prompt,
            chat.ids[chat.start :],
            steps=steps,
            candidates=candidates,
            length=length,
            seed=seed,
            allowed=allowed,
        )
        prompts.append(suffix.append_to(target.example.prompt))
        taken.append(suffix.steps)
        progress("searching suffixes", done, len(targets))
    ids = [prompt_ids(editable.tokenizer, editable.rewrite_prompt(prompt)) for prompt in prompts]
    responses = generate(editable, ids)
    return [AttackOutcome(*one) for one in zip(targets, prompts, responses, taken, strict=True)]


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

    Args:
        editable: the model, attacked as it is now.
        prompt: the request.
        target: token ids `[T]` of a response that complies, or of its beginning.
        steps: maximum number of steps, with one gradient each.
        candidates: suffixes evaluated per step.
        length: tokens of the suffix.
        top_k: replacements that the gradient proposes for each position.
        seed: of the initial suffix and of the candidates.
        allowed: the tokens to use (default: `allowed_tokens`, which takes time to compute).

    Raises:
        ModelError: no suffix of this length is reproduced from its text, or the model's input does
            not contain the request exactly once.
    """
    rng = random.Random(f"{seed}:{list(target)}")
    tokens = allowed_tokens(editable) if allowed is None else allowed
    context, best = initial_suffix(editable, prompt, tokens.tolist(), length, rng)
    target_ids = torch.tensor(list(target))
    (logprob,), (done,) = _evaluate(editable, context, [best], target_ids)
    initial, taken = logprob, 0
    while taken < steps and not done:
        taken += 1
        slopes = _gradient(editable, context, best, target_ids, tokens)
        proposed = tokens[slopes.topk(min(top_k, len(tokens)))[1]].tolist()
        tried = reproduced(editable, context, _neighbours(rng, best, proposed, candidates))
        if not tried:
            continue
        logprobs, generated = _evaluate(editable, context, tried, target_ids)
        at = max(range(len(tried)), key=logprobs.__getitem__)
        if logprobs[at] > logprob:
            best, logprob, done = tried[at], logprobs[at], generated[at]
    text = context.separator + decode(editable, [best])[0]
    return Suffix(text, logprob, initial, taken)


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
