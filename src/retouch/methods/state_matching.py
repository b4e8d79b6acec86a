"""LoRRA and paired matching: adapters that are trained to reproduce reference states."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.cached_batches import CachedBatches
from retouch.methods.lora import LoraSettings, attach_adapter, train
from retouch.methods.method import Method
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, Positions, shuffled_forever
from retouch.representations.cached_states import CachedStates
from retouch.representations.discriminator import States
from retouch.representations.losses import normalized_mse_loss
from retouch.task.examples import EditExamples
from retouch.task.layers import NUM_BELOW
from retouch.task.task import EditTask


def response_means(batches: Sequence[CachedStates]) -> States:
    """The mean reference state at each response offset, `[offsets, hidden]` by layer."""
    found = [one.batch.response_offsets() for one in batches]
    counts, means = torch.bincount(torch.cat(found)), dict[int, torch.Tensor]()
    for cached, offsets in zip(batches, found, strict=True):
        for layer, states in cached.states.items():
            if layer not in means:
                means[layer] = torch.zeros(len(counts), states.shape[-1], device=states.device)
            means[layer].index_add_(0, offsets.to(states.device), states.float())
    return {layer: total / counts[:, None].to(total.device) for layer, total in means.items()}


def reference_loss(
    segment: Segment,
    cached: CachedStates,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = normalized_mse_loss,
) -> torch.Tensor:
    """The mean over the layers of a loss of the current and the reference states `[n, hidden]`."""
    reference = cached.states
    current = cached.current(segment, tuple(reference))
    return torch.stack([loss(current[layer], reference[layer]) for layer in reference]).mean()


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
        segment, size = Segment(editable, 0, max(layers)), settings.batch_size
        batches = CachedBatches(editable, task, segment)
        source = batches.cache(examples.source, size, layers)
        retain = batches.cache(
            examples.retain,
            settings.retain_batch_size,
            layers,
            positions=ChatBatch.token_positions,
        )
        target = batches.cache(examples.counterparts or examples.target, size, layers)
        vectors = reading_vectors(response_means(target), response_means(source))
        sources = shuffled_forever(source, random.Random(f"{task.seed}:source"))
        retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

        def loss(_: int) -> torch.Tensor:
            total = shift_loss(segment, next(sources), vectors, settings.shift)
            if (batch := next(retains, None)) is not None:
                total = total + settings.retain_weight * reference_loss(segment, batch)
            return total

        attach_adapter(editable, range(segment.last + 1), settings, task.seed)
        train(editable, task, settings, loss, progress)


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
    offsets, base = cached.batch.response_offsets().to(cached.positions[0].device), cached.states
    current = cached.current(segment, tuple(base))
    losses = []
    for layer, states in base.items():
        inside = offsets < len(vectors[layer])
        shift = vectors[layer][offsets[inside]].to(states.dtype)
        losses.append(normalized_mse_loss(current[layer][inside], states[inside] + alpha * shift))
    return torch.stack(losses).mean()


class PairedMatchingSettings(LoraSettings):
    """LoRA settings with the weights of the two losses and the layers."""

    learning_rate: float = option(3e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    matching_weight: float = option(
        1.0, "weight of matching the target counterparts' states", search=(0.3, 10), log=True, ge=0
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
        batches = CachedBatches(editable, task, segment)
        source = cache_source(batches, task.train, settings.batch_size, layers)
        retain = batches.cache(
            task.train.retain,
            settings.retain_batch_size,
            layers[-1:],
            positions=ChatBatch.token_positions,
        )
        sources = shuffled_forever(source, random.Random(f"{task.seed}:source"))
        retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

        def loss(_: int) -> torch.Tensor:
            matching = reference_loss(segment, next(sources))
            total: torch.Tensor = settings.matching_weight * matching
            if (batch := next(retains, None)) is not None:
                total = total + settings.retain_weight * reference_loss(segment, batch)
            return total

        attach_adapter(editable, range(segment.first, segment.last + 1), settings, task.seed)
        train(editable, task, settings, loss, progress)


def shifted_layers(task: EditTask, offset: int, depth: int) -> tuple[int, ...]:
    """The layers that Retouch reads, shifted by `offset` within the model."""
    return tuple(sorted({min(max(layer + offset, 0), depth - 1) for layer in task.layers.read}))


def cache_source(
    batches: CachedBatches, examples: EditExamples, batch_size: int, layers: Sequence[int]
) -> list[CachedStates]:
    """The source examples in batches, with the states that they are matched to as the reference."""
    if examples.counterparts:
        return batches.cache_pairs(examples.source, examples.counterparts, batch_size, layers)
    means = response_means(batches.cache(examples.target, batch_size, layers))
    length = len(next(iter(means.values())))

    def reference(batch: ChatBatch, _: Positions) -> States:
        offsets = batch.response_offsets(length)
        return {layer: mean[offsets.to(mean.device)] for layer, mean in means.items()}

    return batches.cache(
        examples.source,
        batch_size,
        positions=lambda batch: batch.response_positions(length),
        reference=reference,
    )
