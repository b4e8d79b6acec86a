"""Initial A matrices that read what source prompts have in excess over retain prompts.

PEFT draws LoRA's A matrices at random, so that an adapter first learns from whatever its random
rows read, most of which source and retain prompts have in common. Here the rows of each A matrix
are the directions in which the inputs of its linear layer, at the last token of a prompt, have the
most energy on the source per energy on the retain set. B stays 0, so that the model is unchanged.
Like EVA (Paischer et al. 2024, arXiv 2410.07170) and CorDA (Yang et al. 2024, arXiv 2406.05223) it
reads activations; unlike them it contrasts two sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.hooks import record_inputs
from retouch.training.context import TrainingContext
from retouch.training.dataset import EditDataset
from retouch.training.micro_batch import Batch

MAX_EXAMPLES = 640  # of each set
RIDGE = 0.1  # added to the retain set's second moments, relative to their mean eigenvalue
MIN_EIGENVALUE = 1e-6  # relative to the largest: below it are rounding errors
A_VARIANCE = 1 / 3  # of an entry of PEFT's A matrices, times the number of a layer's inputs


@torch.no_grad()
def initialize_from_contrast(
    context: TrainingContext,
    layers: Sequence[int],
    dataset: EditDataset,
    progress: Progress = no_progress,
) -> None:
    """Set the A matrices of a new adapter; without a retain set they stay as PEFT drew them.

    Layers that do not see every token are left out.

    Args:
        context: the model with its adapter, and the segment of it.
        layers: the adapted layers.
        dataset: the batches of both sets, of which up to `MAX_EXAMPLES` examples are run.
        progress: called after every batch.
    """
    if not dataset.retain:
        return
    wrappers, last = context.editable.adapted_linears(), max(layers)
    sets = dataset.source, dataset.retain
    batches = [(side, batch) for side, one in enumerate(sets) for batch in _spread(one)]
    found: list[dict[str, list[torch.Tensor]]] = [{}, {}]
    for done, (side, batch) in enumerate(batches, start=1):
        for name, inputs in _last_prompt_inputs(context, last, wrappers, batch).items():
            found[side].setdefault(name, []).append(inputs)
        progress("inputs of the adapters on both sets", done, len(batches))
    previous: torch.Tensor | None = None
    for name, parts in found[0].items():
        weight, source = wrappers[name].lora_A["default"].weight, torch.cat(parts)
        # Queries, keys and values have the same inputs, and so have the gate and the up projection.
        if previous is None or not torch.equal(source, previous):
            previous = source
            rows = contrast_directions(source, torch.cat(found[1][name]), len(weight))
        weight[: len(rows)] = rows.to(weight)


def contrast_directions(source: torch.Tensor, retain: torch.Tensor, rank: int) -> torch.Tensor:
    r"""Directions of the most energy on the source per energy on the retain set.

    The first generalised eigenvectors of $S v = \lambda (R + \rho \, \bar r I) v$, where $S$ and
    $R$ are the second moments $E[x x^T]$ of the two sets, $\bar r$ the mean eigenvalue of $R$ and
    $\rho$ the constant `RIDGE`. All of them lie in the span of the inputs, where they are found: an
    input may have more dimensions than there are examples. Each is scaled to the mean square on the
    source that a random row of PEFT's has.

    Args:
        source: `[n, size]` inputs on source prompts.
        retain: `[m, size]` inputs on retain prompts.
        rank: the number of directions.

    Returns:
        `[k, size]` in float64 on the CPU; `k` is `rank`, or the number of directions with more
        energy on the source than on the retain set ($\lambda > 1$) if that is smaller.
    """
    # In float64, since eigenvectors of close eigenvalues magnify rounding.
    first, second = (inputs.cpu().double() / len(inputs) ** 0.5 for inputs in (source, retain))
    size, energy = first.shape[1], first.pow(2).sum()
    basis = _principal(torch.cat([first, second]).T)  # `[size, k]`, orthonormal
    first, second = first @ basis, second @ basis
    constraint = second.T @ second
    constraint += RIDGE * constraint.trace() / size * torch.eye(len(constraint)).double()
    root = torch.linalg.cholesky(constraint)
    whitened = torch.linalg.solve_triangular(root, first.T, upper=False)
    whitened = _principal(whitened, minimum=1.0)[:, :rank]
    directions = torch.linalg.solve_triangular(root.T, whitened, upper=True)
    mean_squares = (first @ directions).pow(2).sum(0)
    rows: torch.Tensor = basis @ (directions * (A_VARIANCE * energy / size / mean_squares).sqrt())
    return rows.T


def _principal(columns: torch.Tensor, minimum: float = 0.0) -> torch.Tensor:
    """An orthonormal basis `[size, k]` of columns `[size, n]`, by decreasing energy.

    Basis vectors with an energy up to `minimum` are left out.
    """
    values, vectors = torch.linalg.eigh(columns.T @ columns)
    kept = values > (MIN_EIGENVALUE * values[-1]).clamp_min(minimum)
    basis = columns @ (vectors[:, kept] / values[kept].sqrt())
    # The sign of an eigenvector is arbitrary, and rounding must not determine it.
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    found: torch.Tensor = (basis * largest.sign()).flip(1)
    return found


def _spread(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches at equal distances, since they may be in order of length."""
    limit = max(1, MAX_EXAMPLES // len(batches[0].index))
    return batches[:: -(-len(batches) // limit)]


def _last_prompt_inputs(
    context: TrainingContext, last: int, wrappers: Mapping[str, Any], batch: Batch
) -> dict[str, torch.Tensor]:
    """The inputs `[chats, size]` of linear layers at the last token of each prompt of a batch.

    Blocks above the layer `last` are not run. Every process runs its own chats, and has those of
    all processes afterwards.
    """
    found: dict[str, torch.Tensor] = {}
    for micro in batch.micro_batches:
        chats = micro.batch
        at = chats.response_positions(1)
        into = [batch.index.index(chats.index[i]) for i in chats.response_chats(1).tolist()]
        with record_inputs(wrappers, chats.ids.shape, *at) as recorded:
            context.segment.forward(micro.cached.inputs, (last,))
        for name, inputs in recorded.items():
            if name not in found:
                found[name] = inputs.new_zeros(len(batch.index), inputs.shape[-1])
            if not micro.is_dummy:
                found[name][into] = inputs
    distributed.all_reduce(found.values())
    return found
