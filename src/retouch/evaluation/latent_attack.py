r"""Latent attacks: perturbations of a prompt's hidden states under which a model complies.

At the input of one block the states of the prompt are perturbed by $\delta$ with
$\lVert\delta_t\rVert \le \epsilon\,\lVert h_t\rVert$ at every position, towards a response that
complies, by projected gradient ascent (`representations.latent_pgd`), as in latent adversarial
training (Casper et al. 2024, arXiv 2403.05030). The response is generated with the perturbation
applied in the pass over the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from retouch.core.types import Progress, no_progress
from retouch.evaluation.attack_targets import TARGET_TOKENS, AttackOutcome, AttackTarget
from retouch.models.generate import generate
from retouch.models.hooks import edit_inputs
from retouch.models.oom import split_on_oom
from retouch.representations.batch import ChatBatch, make_batches
from retouch.representations.latent_pgd import latent_pgd
from retouch.representations.logprobs import batch_logprob

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

BATCH_SIZE = 32
STEP_SIZE = 2.5  # as a multiple of the radius, over all steps


def latent_attack(
    editable: EditableModel,
    targets: Sequence[AttackTarget],
    *,
    layer: int,
    epsilon: float,
    steps: int = 8,
    progress: Progress = no_progress,
) -> list[AttackOutcome]:
    """Search a perturbation of each request's states and generate the response under it, greedily.

    The input of the block `layer` (0-based) is perturbed, within a radius of `epsilon` times each
    state's norm, in `steps` gradient steps. The model is attacked as it is now.
    """
    chats = [target.tokenized(editable, TARGET_TOKENS) for target in targets]
    # `generate` may split a batch under a device memory limit, but never a single prompt.
    batch_size = BATCH_SIZE if editable.free_bytes is None else 1
    responses: dict[int, str] = {}
    for batch in make_batches(chats, batch_size, int(editable.tokenizer.pad_token_id)):

        def attack(rows: Sequence[int], batch: ChatBatch = batch) -> list[str]:
            return _attack_batch(editable, batch.select(rows), layer, epsilon, steps)

        responses |= zip(batch.index, split_on_oom(attack, range(len(batch.index))), strict=True)
        progress(f"latent attack of radius {epsilon:g}", len(responses), len(chats))
    return [
        AttackOutcome(target, target.example.prompt, responses[i])
        for i, target in enumerate(targets)
    ]


def first_adapted_layer(editable: EditableModel) -> int:
    """The first block with an adapter; without one, the block in the middle."""
    pattern = re.compile(rf"{re.escape(editable.layout.path)}\.(\d+)\..*lora_A")
    found = [pattern.search(name) for name, _ in editable.model.named_parameters()]
    return min((int(one[1]) for one in found if one), default=editable.layout.depth // 2)


def search_perturbation(
    editable: EditableModel, batch: ChatBatch, layer: int, epsilon: float, steps: int
) -> torch.Tensor:
    """The perturbation that maximises the log-probability of each response of a batch.

    The arguments are those of `latent_attack`; the batch has the prompts, each with a response (or
    its beginning) that complies. The best of all visited perturbations is returned for each row.

    Returns:
        `[rows, tokens, hidden]` in float32, 0 at the positions of the response.
    """
    inputs: list[torch.Tensor] = []

    def record(hidden: torch.Tensor) -> torch.Tensor:
        inputs.append(hidden.detach())
        return hidden

    def objective(states: torch.Tensor) -> torch.Tensor:
        with edit_inputs(editable, layer, lambda _: states):
            return batch_logprob(editable, batch)

    with torch.no_grad(), edit_inputs(editable, layer, record):
        editable.model(input_ids=batch.ids.to(editable.device), use_cache=False)
    is_prompt = torch.arange(batch.ids.shape[1])[None, :] < torch.tensor(batch.starts)[:, None]
    return latent_pgd(
        inputs[0], objective, epsilon, steps, step_size=STEP_SIZE, mask=is_prompt, keep_best=True
    )


def _attack_batch(
    editable: EditableModel, batch: ChatBatch, layer: int, epsilon: float, steps: int
) -> list[str]:
    delta = search_perturbation(editable, batch, layer, epsilon, steps)
    # `generate` sorts prompts by their length and pads them on the left.
    order = sorted(range(len(batch.index)), key=lambda row: batch.starts[row])
    longest = max(batch.starts)
    padded = delta.new_zeros(len(order), longest, delta.shape[-1])
    for at, row in enumerate(order):
        padded[at, longest - batch.starts[row] :] = delta[row, : batch.starts[row]]
    prompts = [batch.ids[row, : batch.starts[row]].tolist() for row in order]

    def add_delta(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + padded.to(hidden.device, hidden.dtype)

    with edit_inputs(editable, layer, add_delta):
        texts = generate(editable, prompts, batch_size=len(prompts), share_beginning=False)
    found = dict(zip(order, texts, strict=True))
    return [found[row] for row in range(len(order))]
