r"""Perturbed states: how far a prompt's states must be pushed until the model complies.

At the input of one block the states of the prompt are moved by $\delta$ with
$\lVert\delta_t\rVert \le r\,\lVert h_t\rVert$ at every position, towards the response that complies:
projected gradient ascent (Madry et al. 2018, arXiv 1706.06083) in the latent space, as the attacks
of latent adversarial training (Casper et al. 2024, arXiv 2403.05030). The response is then generated
with the perturbation in place, in the pass over the prompt alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.generate import generate
from retouch.representations.batch import PaddedBatch, make_batches

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

BATCH = 32


def first_adapted(editable: EditableModel) -> int:
    """The first block with an adapter; without one, the block in the middle."""
    pattern = re.compile(rf"{re.escape(editable.layout.path)}\.(\d+)\..*lora_A")
    found = [pattern.search(name) for name, _ in editable.model.named_parameters()]
    return min((int(one[1]) for one in found if one), default=editable.layout.depth // 2)


@contextmanager
def perturb_inputs(editable: EditableModel, layer: int, delta: torch.Tensor) -> Iterator[None]:
    """Inside, `delta` `[rows, tokens, hidden]` is added to what enters block `layer`.

    Calls on a single new token (generation with a cache, after the prompt) are left alone.
    """
    with _entering(editable, layer, lambda hidden: hidden + delta.to(hidden.device, hidden.dtype)):
        yield


def search_perturbation(
    editable: EditableModel, batch: PaddedBatch, layer: int, radius: float, steps: int = 8
) -> torch.Tensor:
    """The perturbation `[rows, tokens, hidden]` that makes the batch's responses most likely.

    Steps go along the gradient normalised at each position, 2.5 radii in all, and back onto the
    ball; of all that were visited, each row's best is kept. Positions of the response stay 0.

    Args:
        editable: the model, attacked as it is now.
        batch: prompts, each with the response (or its beginning) that complies.
        layer: whose input is moved, 0-based.
        radius: of the ball, as a share of each state's norm.
        steps: gradients taken.
    """
    states: list[torch.Tensor] = []

    def look(hidden: torch.Tensor) -> torch.Tensor:
        states.append(hidden.detach())
        return hidden

    with torch.no_grad(), _entering(editable, layer, look):
        best_value = _log_probability(editable, batch)
    at = torch.arange(batch.ids.shape[1])[None, :]
    prompt = (at < torch.tensor(batch.starts)[:, None]).to(editable.device)
    limit = radius * states[0].float().norm(dim=-1) * prompt
    delta = torch.zeros_like(states[0], dtype=torch.float32)
    best = delta.clone()
    for step in range(steps + 1):
        leaf = delta.detach().requires_grad_()
        with torch.enable_grad(), perturb_inputs(editable, layer, leaf):
            value = _log_probability(editable, batch)
            (slope,) = torch.autograd.grad(value.sum(), [leaf])
        better = value.detach() > best_value
        best_value = torch.where(better, value.detach(), best_value)
        best = torch.where(better[:, None, None], delta, best)
        if step < steps:
            unit = slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            delta = _onto_ball(delta + 2.5 / steps * limit[:, :, None] * unit, limit)
    return best


def perturbed_responses(
    editable: EditableModel,
    rows: Sequence[TokenizedChat],
    layer: int,
    radius: float,
    steps: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy responses to the rows' prompts, each under the perturbation found for its response."""
    responses = [""] * len(rows)
    done = 0
    for batch in make_batches(rows, BATCH, int(editable.tokenizer.pad_token_id)):
        delta = search_perturbation(editable, batch, layer, radius, steps)
        # `generate` sorts prompts by their length and pads them on the left.
        order = sorted(range(len(batch.index)), key=lambda row: batch.starts[row])
        longest = max(batch.starts)
        moved = delta.new_zeros(len(order), longest, delta.shape[-1])
        for place, row in enumerate(order):
            moved[place, longest - batch.starts[row] :] = delta[row, : batch.starts[row]]
        prompts = [batch.ids[row, : batch.starts[row]].tolist() for row in order]
        with perturb_inputs(editable, layer, moved):
            told = generate(editable, prompts, batch_size=len(prompts))
        for row, response in zip(order, told, strict=True):
            responses[batch.index[row]] = response
        done += len(order)
        if progress:
            progress(done, len(rows))
    return responses


def _onto_ball(delta: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Each position's perturbation, shortened to its limit `[rows, tokens]`."""
    norm = delta.norm(dim=-1)
    share: torch.Tensor = (limit / norm.clamp_min(1e-12)).clamp_max(1.0)
    return delta * share[:, :, None]


def _log_probability(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    """Mean log-probability of each row's response `[rows]`; gradients flow."""
    logits = editable.model(input_ids=batch.ids.to(editable.device), use_cache=False).logits
    rows, at = batch.response_positions()
    told = batch.response_tokens().to(logits.device)
    chosen = logits[rows, at].float().log_softmax(-1).gather(1, told[:, None])[:, 0]
    rows = rows.to(logits.device)
    total = torch.zeros(len(batch.index), device=logits.device).index_add(0, rows, chosen)
    mean: torch.Tensor = total / torch.bincount(rows, minlength=len(batch.index))
    return mean


@contextmanager
def _entering(
    editable: EditableModel, layer: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Inside, `change` is applied to what enters a block, but for single new tokens."""

    def hook(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = args[0] if args else named["hidden_states"]
        if hidden.shape[1] == 1:
            return None
        hidden = change(hidden)
        if args:
            return (hidden, *args[1:]), named
        return args, {**named, "hidden_states": hidden}

    handle = editable.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
