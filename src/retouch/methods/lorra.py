"""Low-Rank Representation Adaptation (LoRRA): adapters that shift states by a reading vector."""

from __future__ import annotations

import random
from typing import Any

import torch

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.lora import LoraSettings, Loss, train
from retouch.methods.method import Method
from retouch.methods.state_batches import StateBatches, reference_loss
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import PaddedBatch, shuffled_forever
from retouch.representations.cached_states import CachedStates
from retouch.representations.discriminator import States
from retouch.representations.losses import normalized_mse_loss
from retouch.task.task import EditTask


class LorraSettings(LoraSettings):
    """LoRA settings with the length of the shift and the weight of the retain loss."""

    learning_rate: float = option(3e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    shift: float = option(
        2.0, "length of the shift in reading vectors (the paper's alpha)", search=(0.5, 4), log=True
    )
    retain_weight: float = option(
        10.0, "weight of keeping the retain set's states", search=(1, 100), log=True, ge=0
    )


class Lorra(Method):
    r"""Train adapters to reproduce the base model's states with a reading vector added.

    $$L = \frac{\lVert h_l(x) - (h_l^{base}(x) + \alpha v_l) \rVert^2}
        {\lVert h_l^{base}(x) + \alpha v_l \rVert^2}$$

    along the responses $x$ of the source examples, after algorithm 1. There, the contrast vector of
    each text and token comes from a template around the text. Here, $v_l$ is the difference between
    the mean states of target and source examples at each response offset, since the examples of a
    concept are its contrast. The algorithm has no retain set; here, its states are kept.
    """

    id = "lorra"
    title = "LoRRA"
    source = "Zou et al. 2023, arXiv 2310.01405, algorithm 1"
    settings = LorraSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters from the first layer to the last that is read."""
        layers, examples = task.layers.read, task.train
        segment = Segment(editable, 0, max(layers))
        batches = StateBatches(editable, segment, layers, settings.batch_size)
        source = batches.cache(examples.source)
        retain = batches.cache(examples.retain, positions=PaddedBatch.token_positions)
        target_means = batches.response_means(examples.counterparts or examples.target)
        vectors = reading_vectors(target_means, batches.response_means(examples.source))

        def make_loss() -> Loss:
            sources = shuffled_forever(source, random.Random(f"{task.seed}:source"))
            retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

            def loss(_: int) -> torch.Tensor:
                total = shift_loss(segment, next(sources), vectors, settings.shift)
                if (batch := next(retains, None)) is not None:
                    total = total + settings.retain_weight * reference_loss(segment, batch)
                return total

            return loss

        train(editable, task, settings, range(segment.last + 1), make_loss, progress)


def reading_vectors(target_means: States, source_means: States) -> States:
    """$v_l$ `[offsets, hidden]` by layer: target means less source means, as far as both reach."""
    return {
        layer: target_means[layer][: len(source)] - source[: len(target_means[layer])]
        for layer, source in source_means.items()
    }


def shift_loss(
    segment: Segment, cached: CachedStates, vectors: States, alpha: float
) -> torch.Tensor:
    """Distance of the current states to the base's with `alpha` vectors added, mean of the layers.

    Positions beyond the offsets that the vectors reach are left out.
    """
    offsets, base = cached.batch.response_offsets(cached.positions), cached.states
    current = cached.current(segment, tuple(base))
    losses = []
    for layer, states in base.items():
        inside = offsets < len(vectors[layer])
        shift = vectors[layer][offsets[inside]].to(states.dtype)
        reference = states[inside] + alpha * shift
        losses.append(normalized_mse_loss(current[layer][inside], reference))
    return torch.stack(losses).mean()
