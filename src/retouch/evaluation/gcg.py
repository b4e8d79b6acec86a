"""Suffixes found by gradient: words after a request that make a model comply.

The greedy coordinate gradient of Zou et al. 2023, arXiv 2307.15043, for one request at a time: the
gradient with respect to the one-hot tokens of the suffix proposes replacements, and of a batch of
suffixes that differ in one token the best one is taken. Two things differ: a suffix is never given
up for a worse one, and the search ends as soon as the model would progress the target by itself.

The model is attacked as it is: its adapter and interventions act, and the prompt passes through
what they add to it. Only suffixes count that come back from text as the same tokens, so that what
is found can be typed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from retouch.core.types import Message
from retouch.evaluation.suffix_tokens import (
    Frame,
    allowed_tokens,
    begin,
    decode,
    surviving,
    with_suffix,
)
from retouch.representations.logprobs import max_logit_tokens

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel


@dataclass(frozen=True)
class Suffix:
    """A suffix and what it does.

    Attributes:
        text: what follows the last user turn, the space before it included.
        log_probability: of the target with it, mean over the target's tokens, in nats.
        before: the same with the random suffix that the search began from.
        steps: how many steps were taken.
    """

    text: str
    log_probability: float
    before: float
    steps: int

    def on(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        """The prompt with the suffix."""
        return with_suffix(prompt, self.text)


def search_suffix(
    editable: EditableModel,
    prompt: Sequence[Message],
    target: Sequence[int],
    *,
    steps: int = 20,
    candidates: int = 32,
    length: int = 8,
    top: int = 64,
    seed: int = 0,
    allowed: torch.Tensor | None = None,
) -> Suffix:
    r"""Study the suffix $s$ that maximises $\frac1T \sum_t \log p(y_t | x, s, y_{<t})$.

    Args:
        editable: the model, attacked as it is now.
        prompt: the request.
        target: token ids `[T]` of the response, or of its beginning, that complies.
        steps: at most so many steps, each with one gradient.
        candidates: suffixes looked at in a step.
        length: tokens of the suffix.
        top: replacements that the gradient proposes for each place.
        seed: of the first suffix and of the draws.
        allowed: the tokens to use, as `allowed_tokens` gives them; to be had once for many rows.

    Raises:
        ModelError: no suffix of this length survives the way through text, or the request stands
            more than once in what the model is given.
    """
    rng = random.Random(f"{seed}:{list(target)}")
    tokens = allowed_tokens(editable) if allowed is None else allowed
    frame, best = begin(editable, prompt, tokens.tolist(), length, rng)
    said = torch.tensor(list(target))
    (value,), (done,) = _score(editable, frame, [best], said)
    first, taken = value, 0
    while taken < steps and not done:
        taken += 1
        slopes = _gradient(editable, frame, best, said, tokens)
        proposed = tokens[slopes.topk(min(top, len(tokens)))[1]]
        tried = surviving(editable, frame, _neighbours(rng, best, proposed.tolist(), candidates))
        if not tried:
            continue
        values, reached = _score(editable, frame, tried, said)
        at = max(range(len(tried)), key=values.__getitem__)
        if values[at] > value:
            best, value, done = tried[at], values[at], reached[at]
    return Suffix(frame.joiner + decode(editable, [best])[0], value, first, taken)


def _neighbours(
    rng: random.Random, best: list[int], proposed: list[list[int]], count: int
) -> list[list[int]]:
    """Suffixes that differ from the best in one token, the places taken in turn."""
    found = set()
    for i in range(count):
        place = i % len(best)
        suffix = [*best[:place], rng.choice(proposed[place]), *best[place + 1 :]]
        found.add(tuple(suffix))
    return [list(suffix) for suffix in sorted(found) if list(suffix) != best]


@torch.no_grad()
def _score(
    editable: EditableModel, frame: Frame, suffixes: Sequence[list[int]], target: torch.Tensor
) -> tuple[list[float], list[bool]]:
    """The target's mean log-probability behind each suffix, and whether it is the greedy response."""
    ids = torch.stack([_ids(frame, suffix, target) for suffix in suffixes])
    values: list[float] = []
    reached: list[bool] = []
    room = max(1, max_logit_tokens(editable) // ids.shape[1])
    for at in range(0, len(ids), room):
        part = ids[at : at + room]
        logits = _target_logits(editable, part, len(target))
        said = target.to(logits.device).expand(len(part), -1)
        values += logits.log_softmax(-1).gather(2, said[:, :, None])[:, :, 0].mean(1).tolist()
        reached += (logits.argmax(-1) == said).all(1).tolist()
    return values, reached


def _gradient(
    editable: EditableModel,
    frame: Frame,
    suffix: list[int],
    target: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """How the target's log-probability grows with each token at each place: `[length, tokens]`.

    The gradient with respect to a one-hot token is the product of the gradient at its embedding
    with every embedding; by hook, for models that scale what they embed.
    """
    embed = editable.model.get_input_embeddings()
    inputs: list[torch.Tensor] = []

    def leaf(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    handle = embed.register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            logits = _target_logits(editable, _ids(frame, suffix, target)[None], len(target))
            told = logits[0].log_softmax(-1).gather(1, target.to(logits.device)[:, None]).mean()
            (slope,) = torch.autograd.grad(told, inputs)
    finally:
        handle.remove()
    first = len(frame.before)
    with torch.no_grad():
        every = embed(tokens.to(editable.device)).float()
        grown: torch.Tensor = slope[0, first : first + len(suffix)].float() @ every.T
    return grown.cpu()


def _ids(frame: Frame, suffix: list[int], target: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.tensor([*frame.before, *suffix, *frame.after]), target])


def _target_logits(editable: EditableModel, ids: torch.Tensor, length: int) -> torch.Tensor:
    """The logits `[rows, length, vocabulary]` that predict the last `length` tokens."""
    logits: torch.Tensor = editable.model(input_ids=ids.to(editable.device), use_cache=False).logits
    return logits[:, -length - 1 : -1].float()
