"""Directions in the hidden states that separate target from source examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ConfigError
from retouch.models.editable_model import EditableModel
from retouch.representations.activations import response_states
from retouch.representations.discriminator import States
from retouch.task.task import EditTask


@dataclass(frozen=True)
class ContrastStates:
    """The states of target and source examples at the output of a layer, float32 on the CPU.

    Attributes:
        target: `[n, hidden]`.
        source: `[m, hidden]`; with pairs, row i of both has the same response.
        paired: whether there are pairs.
    """

    target: torch.Tensor
    source: torch.Tensor
    paired: bool


def layer_at_offset(task: EditTask, depth: int, offset: int) -> int:
    """The layer `offset` above the first that Retouch reads, within the model."""
    return min(max(task.layers.read[0] + offset, 0), depth - 1)


def contrast_states(
    editable: EditableModel, task: EditTask, layers: Sequence[int], positions: int
) -> dict[int, ContrastStates]:
    """The base model's states on the training examples, by layer.

    Args:
        editable: the model; its adapter and interventions are switched off meanwhile.
        task: the examples. With pairs, the target states are those of the counterparts, which have
            the source's responses; without, those of the target examples.
        layers: the layers whose outputs are read.
        positions: a state is the mean over this many response positions, from the last prompt
            token on.
    """
    examples = task.train
    with editable.base_model():
        chats = examples.counterparts or examples.target
        target = mean_response_states(editable, chats, layers, positions)
        source = mean_response_states(editable, examples.source, layers, positions)
    paired = bool(examples.counterparts)
    return {layer: ContrastStates(target[layer], source[layer], paired) for layer in layers}


def mean_response_states(
    editable: EditableModel, chats: Sequence[TokenizedChat], layers: Sequence[int], positions: int
) -> States:
    """Each chat's mean state over its first response positions, `[chats, hidden]` by layer."""
    means: States = {}
    for batch, rows, states in response_states(editable, chats, layers, positions):
        counts = torch.bincount(rows, minlength=len(batch.index))[:, None]
        for layer in layers:
            values = states[layer].float().cpu()
            if layer not in means:
                means[layer] = torch.zeros(len(chats), values.shape[1])
            total = torch.zeros(len(batch.index), values.shape[1]).index_add(0, rows, values)
            means[layer][list(batch.index)] = total / counts
    return means


def mean_difference(states: ContrastStates) -> torch.Tensor:
    r"""The difference of means `[hidden]` (Rimsky et al. 2023, section 3).

    $$v = \frac1n \sum_i h_i^+ - \frac1m \sum_j h_j^-$$

    With pairs this is their equation: the mean over the pairs of $h_i^+ - h_i^-$.
    """
    return states.target.mean(0) - states.source.mean(0)


def reading_direction(states: ContrastStates, seed: int) -> torch.Tensor:
    r"""The first principal component of the paired differences, a unit vector `[hidden]`.

    $$v = \arg\max_{|v| = 1} \sum_i (v \cdot (h_i^+ - h_i^-))^2, \qquad
      v \cdot (\bar h^+ - \bar h^-) > 0$$

    Zou et al. 2023 (section 3.1) order each pair at random before the PCA, so that the differences
    have mean zero; this is the expectation of that. The sign is set as theirs: target states
    project higher. Without pairs, examples are paired at random.
    """
    target, source = states.target, states.source
    if not states.paired:
        rng, count = random.Random(seed), min(len(target), len(source))
        target = target[rng.sample(range(len(target)), count)]
        source = source[rng.sample(range(len(source)), count)]
    _, _, components = torch.linalg.svd(target - source, full_matrices=False)
    first: torch.Tensor = components[0]
    return first if first @ mean_difference(states) >= 0 else -first


def normalize(vector: torch.Tensor) -> torch.Tensor:
    """The vector scaled to length 1.

    Raises:
        ConfigError: its length is 0, so that target and source states are the same.
    """
    length = float(vector.norm())
    if not length > 0:
        raise ConfigError(
            "Target and source states do not differ at this layer.",
            "Read a later layer: raise `offset`.",
            code="states-equal",
        )
    return vector / length
