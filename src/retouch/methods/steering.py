"""Steering and ablation: directions in the hidden states that separate target and source."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import LoraConfig, option
from retouch.core.errors import ConfigError
from retouch.core.types import Progress
from retouch.methods.method import Method, MethodSettings
from retouch.models import interventions
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import removing
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

    A state is the mean over the first `positions` response positions, from the last prompt token
    on. With pairs, the target states are those of the counterparts, which have the source's
    responses; without, those of the target examples.
    """
    paired = bool(task.train.counterparts)
    with editable.base_model():
        chats = task.train.counterparts or task.train.target
        target = mean_response_states(editable, chats, layers, positions)
        source = mean_response_states(editable, task.train.source, layers, positions)
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


OFFSET = option(0, "layer, relative to the first that Retouch reads", search=(-1, 2))
POSITIONS = option(
    1, "response positions that are read, from the last prompt token on", choices=(1, 2, 4)
)


class SteeringSettings(MethodSettings):
    """The strength of the vector, its layer, and the positions that it is computed from."""

    strength: float = option(
        0.75, "strength of the vector; 1 is the whole difference", search=(0.25, 4), log=True
    )
    offset: int = OFFSET
    positions: int = POSITIONS


class Steering(Method):
    """Add the difference of means to the output of one layer, at every position.

    Rimsky et al. steer only after the prompt. Here, as in the steering libraries, the prompt is
    steered too, since an edit also acts on every token that the model reads.
    """

    id = "steering"
    title = "Steering (CAA)"
    source = "Rimsky et al. 2023, arXiv 2312.06681"
    settings = SteeringSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Compute the vectors from the training examples and add them."""
        depth = editable.layout.depth
        first = layer_at_offset(task, depth, settings.offset)
        layers = range(first, min(first + getattr(settings, "span", 1), depth))
        states = contrast_states(editable, task, layers, settings.positions)
        vectors = {
            layer: self.vector(one, settings.strength, task.seed).to(editable.device)
            for layer, one in states.items()
        }
        editable.intervene(interventions.Steering(vectors))

    def vector(self, states: ContrastStates, strength: float, seed: int) -> torch.Tensor:
        """The vector of a layer."""
        return strength * mean_difference(states)


class ReadingVectorSettings(SteeringSettings):
    """Steering settings with the number of layers."""

    # Lower than for one layer, since the vectors of all layers add up.
    strength: float = option(
        0.25, "strength of each vector; 1 is the whole difference", search=(0.1, 4), log=True
    )
    span: int = option(4, "number of layers that get a vector", search=(1, 4))


class ReadingVector(Steering):
    r"""Add to each of several layers its own reading vector.

    $h_l \leftarrow h_l + s \, |\bar h^+_l - \bar h^-_l| \, v_l$, with the unit vector $v_l$ of the
    layer and the strength $s$: at 1, the vector is as long as the difference of means.
    """

    id = "reading-vector"
    title = "Reading vector (RepE)"
    source = "Zou et al. 2023, arXiv 2310.01405"
    settings = ReadingVectorSettings

    def vector(self, states: ContrastStates, strength: float, seed: int) -> torch.Tensor:
        """The scaled reading vector of a layer."""
        length: torch.Tensor = strength * mean_difference(states).norm()
        return length * reading_direction(states, seed)


class AblationSettings(MethodSettings):
    """How the direction is scaled, what is added along it, and where it is read."""

    scale: float = option(
        -1.0, "factor of the output along the direction that is added; -1 ablates", search=(-1, 3)
    )
    added: float = option(
        0.25, "mean differences added at the layer; 0 adds none", search=(0.05, 3), log=True
    )
    offset: int = OFFSET
    positions: int = POSITIONS


class Ablation(Method):
    r"""Remove a direction from what every layer writes, or amplify it.

    With the unit difference of means $r$ at one layer (Arditi et al. 2024, sections 2.3 and 2.4),

    $$W' = W + c \, r r^\top W, \qquad h_l \leftarrow h_l + a \, |\bar h^+ - \bar h^-| \, r$$

    for each linear layer that writes to the residual stream, in all blocks. $c = -1$ is their
    weight orthogonalisation; larger values amplify. The second part is their activation addition,
    which would be a bias in the weights; both together replace what is written along $r$ by a
    constant. The embedding and the biases of those linear layers are unchanged, and where a norm
    follows such a layer before the residual stream (Gemma 2), it rescales the result.
    """

    id = "ablation"
    title = "Directional ablation"
    source = "Arditi et al. 2024, arXiv 2406.11717"
    settings = AblationSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Compute the direction from the training examples; add the adapter and the vector."""
        layer = layer_at_offset(task, editable.layout.depth, settings.offset)
        states = contrast_states(editable, task, [layer], settings.positions)[layer]
        difference = mean_difference(states)
        scale_direction(editable, normalize(difference), settings.scale)
        if settings.added:
            vector = settings.added * difference.to(editable.device)
            editable.intervene(interventions.Steering({layer: vector}))


@torch.no_grad()
def scale_direction(editable: EditableModel, direction: torch.Tensor, scale: float) -> None:
    r"""Apply $W' = W + c \, r r^\top W$ to every writing layer, for a unit vector $r$ `[hidden]`.

    It is a LoRA with $B = c \, r$ and $A = r^\top W$, so it can be merged, exported and
    switched off like any adapter.
    """
    names = residual_writers(editable)
    config = LoraConfig(r=1, lora_alpha=1.0, target_modules=tuple(names))
    attach(editable, range(editable.layout.depth), config, seed=0)  # all weights are replaced
    base = editable.model.get_base_model()
    for name in names:
        layer = base.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        r = direction.to(a.device, torch.float32)
        weight = layer.base_layer.weight.float()
        # A Conv1D (GPT-2) has its weight transposed, [in, out].
        projected = r @ weight if isinstance(layer.base_layer, nn.Linear) else weight @ r
        a.copy_(projected[None, :])
        b.copy_(scale * r[:, None])


@torch.no_grad()
def residual_writers(editable: EditableModel) -> list[str]:
    """Full names of the linear layers whose output is added to the residual stream.

    Their output has the hidden size, but a query projection's may have it too. Of the layers with
    one parent module (attention, the feed-forward part or the block itself), the writer is the one
    that runs last. Not found are experts that share one weight, and experts that the router does
    not choose for the token that is run.
    """
    base = editable.base
    hidden = int(base.config.get_text_config().hidden_size)
    last: dict[str, str] = {}

    def recorder(name: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            if output.shape[-1] == hidden:
                last[name.rsplit(".", 1)[0]] = name

        return hook

    names = editable.layout.linears(base, range(editable.layout.depth))
    with removing([base.get_submodule(n).register_forward_hook(recorder(n)) for n in names]):
        base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=editable.device), use_cache=False)
    return list(last.values())
