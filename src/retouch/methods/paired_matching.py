"""Paired matching: Retouch's matching loss without its adversarial training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.lora import LoraSettings, Loss, train
from retouch.methods.method import Method
from retouch.methods.state_batches import StateBatches, reference_loss
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import PaddedBatch, Positions, shuffled_forever
from retouch.representations.cached_states import CachedStates
from retouch.representations.discriminator import States
from retouch.task.examples import EditExamples
from retouch.task.layers import NUM_BELOW
from retouch.task.task import EditTask


class PairedMatchingSettings(LoraSettings):
    """LoRA settings with the weights of the two losses and the layers."""

    learning_rate: float = option(3e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    matching_weight: float = option(
        1.0,
        "weight of matching the states of the target counterparts",
        search=(0.3, 10),
        log=True,
        ge=0,
    )
    retain_weight: float = option(
        30.0, "weight of keeping the retain set's states", search=(3, 100), log=True, ge=0
    )
    offset: int = option(
        0, "shift of the layers relative to those that Retouch reads", choices=(-2, -1, 0, 1, 2)
    )


class PairedMatching(Method):
    r"""Match the states of each source response to the base states of its target counterpart.

    $$L = w_m \frac{\sum_i \lVert h_i - h^*_i \rVert^2}{\sum_i \lVert h^*_i \rVert^2}
        + w_r \frac{\sum_j \lVert h_j - h^{base}_j \rVert^2}{\sum_j \lVert h^{base}_j \rVert^2}$$

    with $h^*$ the counterpart's states, $i$ over the response at the read layers and $j$ over every
    token of the retain set at the last of them. There are no discriminators and no moving average.

    Without pairs, a source state is matched to the mean state of the target examples at the same
    response offset; offsets beyond every target response are left out.
    """

    id = "paired-matching"
    title = "Paired matching"
    source = "the matching loss of Retouch alone"
    settings = PairedMatchingSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters on the read layers and those just below."""
        layers = shifted_layers(task, settings.offset, editable.layout.depth)
        segment = Segment(editable, max(0, layers[0] - NUM_BELOW), layers[-1])
        batches = StateBatches(editable, segment, layers, settings.batch_size)
        source = cache_source(batches, task.train)
        retain = batches.cache(
            task.train.retain, positions=PaddedBatch.token_positions, layers=layers[-1:]
        )

        def make_loss() -> Loss:
            sources = shuffled_forever(source, random.Random(f"{task.seed}:source"))
            retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

            def loss(_: int) -> torch.Tensor:
                matching = reference_loss(segment, next(sources))
                total: torch.Tensor = settings.matching_weight * matching
                if (batch := next(retains, None)) is not None:
                    total = total + settings.retain_weight * reference_loss(segment, batch)
                return total

            return loss

        train(editable, task, settings, range(segment.first, segment.last + 1), make_loss, progress)


def shifted_layers(task: EditTask, offset: int, depth: int) -> tuple[int, ...]:
    """The layers that Retouch reads, shifted by `offset` within the model."""
    return tuple(sorted({min(max(layer + offset, 0), depth - 1) for layer in task.layers.read}))


def cache_source(batches: StateBatches, examples: EditExamples) -> Sequence[CachedStates]:
    """The source examples in batches, with the states that they are matched to as the reference."""
    if examples.counterparts:
        return batches.cache_pairs(examples.source, examples.counterparts)
    means = batches.response_means(examples.target)
    length = len(next(iter(means.values())))

    def positions(batch: PaddedBatch) -> Positions:
        return batch.response_positions(length)

    def reference(batch: PaddedBatch, at: Positions) -> States:
        offsets = batch.response_offsets(at)
        return {layer: mean[offsets.to(mean.device)] for layer, mean in means.items()}

    return batches.cache(examples.source, positions=positions, reference=reference)
