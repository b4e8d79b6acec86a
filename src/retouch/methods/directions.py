"""Directions in the hidden states that tell wanted runs from unwanted ones: pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ConfigError
from retouch.models.editable_model import EditableModel
from retouch.representations.activations import record_activations
from retouch.representations.batch import make_batches
from retouch.task.task import EditTask


@dataclass(frozen=True)
class PairedTest:
    """The states of both direction_spec at the output of one block, in float32 on the CPU.

    Attributes:
        wanted: `[rows, hidden]`.
        unwanted: `[others, hidden]`; where there are pairs, row i of both is the same request.
        paired: whether there are pairs.
    """

    wanted: torch.Tensor
    unwanted: torch.Tensor
    paired: bool


def block_at(task: EditTask, depth: int, offset: int) -> int:
    """The block `offset` away from the first that Retouch reads, as far as there are blocks."""
    return min(max(task.layers.read[0] + offset, 0), depth - 1)


def contrast(
    editable: EditableModel, task: EditTask, layers: Sequence[int], positions: int
) -> dict[int, PairedTest]:
    """The base model's states on the training rows, by block.

    Args:
        editable: the model; what acts on it is switched off meanwhile.
        task: for its rows. With pairs the wanted states are those of the counterparts, and both direction_spec have
            the same response; without, those of the target.
        layers: the blocks whose outputs are read.
        positions: the state of a row is the mean over the positions that predict the first so many
            tokens of its response; 1 is the decision alone.
    """
    rows = task.train
    with editable.base_model():
        wanted = response_states(editable, rows.counterparts or rows.target, layers, positions)
        unwanted = response_states(editable, rows.source, layers, positions)
    return {i: PairedTest(wanted[i], unwanted[i], bool(rows.counterparts)) for i in layers}


@torch.no_grad()
def response_states(
    editable: EditableModel, rows: Sequence[TokenizedChat], layers: Sequence[int], positions: int
) -> dict[int, torch.Tensor]:
    """By block `[rows, hidden]`: each row's mean over its first response positions, in row order."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    order: list[int] = []
    for batch in make_batches(rows, 32, int(editable.tokenizer.pad_token_id)):
        with record_activations(editable, layers) as states:
            editable.model(input_ids=batch.ids.to(editable.device), use_cache=False)
        at = batch.response_positions(positions)
        count = torch.bincount(at[0], minlength=len(batch.index))[:, None]
        order += batch.index
        for layer in layers:
            read = states[layer][at].float().cpu()
            total = torch.zeros(len(batch.index), read.shape[1]).index_add(0, at[0], read)
            found[layer].append(total / count)
    back = torch.tensor(order).argsort()
    return {layer: torch.cat(parts)[back] for layer, parts in found.items()}


def mean_difference(both: PairedTest) -> torch.Tensor:
    r"""The difference of means `[hidden]` (Rimsky et al. 2023, section 3).

    $$v = \frac1n \sum_i h_i^+ - \frac1m \sum_j h_j^-$$

    With pairs this is their equation: the mean over the pairs of $h_i^+ - h_i^-$.
    """
    return both.wanted.mean(0) - both.unwanted.mean(0)


def reading_direction(both: PairedTest, seed: int) -> torch.Tensor:
    r"""The first principal component of the paired differences, a unit vector `[hidden]`.

    $$v = \arg\max_{|v| = 1} \sum_i (v \cdot (h_i^+ - h_i^-))^2, \qquad
      v \cdot (\bar h^+ - \bar h^-) > 0$$

    Zou et al. 2023 (section 3.1) take the order within each pair at random before the PCA, so that
    the differences have mean zero; this is the expectation of that, and what their sign step then
    does: the wanted states project higher. Without pairs, rows are paired at random.
    """
    wanted, unwanted = both.wanted, both.unwanted
    if not both.paired:
        rng, fewer = random.Random(seed), min(len(wanted), len(unwanted))
        wanted = wanted[rng.sample(range(len(wanted)), fewer)]
        unwanted = unwanted[rng.sample(range(len(unwanted)), fewer)]
    _, _, components = torch.linalg.svd(wanted - unwanted, full_matrices=False)
    first: torch.Tensor = components[0]
    return first if first @ mean_difference(both) >= 0 else -first


def unit(vector: torch.Tensor) -> torch.Tensor:
    """The vector at length 1.

    Raises:
        ConfigError: it has no length, so that both direction_spec look the same.
    """
    length = float(vector.norm())
    if not length > 0:
        raise ConfigError(
            "The wanted and the unwanted states do not differ here.",
            "Read a later block: raise `offset`.",
        )
    return vector / length
