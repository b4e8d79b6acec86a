"""What an edit holds in memory and on disk, before it is begun: an estimate from shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from retouch.editing.workload import JUDGED, TOGETHER, Workload
from retouch.models.footprint import (
    activation_bytes,
    cache_bytes,
    state_bytes,
    training_bytes,
    widest,
)
from retouch.models.layout import ModelLayout

LOGITS = 2**28  # numbers of logits that are held at a time


@dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Attributes:
        weights: the model's.
        generation: keys, values and what passes a block while the base replies.
        cached: the states that are kept through the game.
        adapter: its weights, gradients, Adam's moments, averages.
        activations: what autograd saves of one step.
        judging: logits of one batch that is judged.
    """

    weights: int
    generation: int
    cached: int
    adapter: int
    activations: int
    judging: int

    @property
    def beside(self) -> int:
        """The most that is held beside the weights at one time."""
        playing = self.cached + self.adapter + max(self.activations, self.judging)
        return max(self.generation, playing)

    @property
    def peak(self) -> int:
        """The most that is held at one time."""
        return self.weights + self.beside


def memory(
    work: Workload,
    model: Any,
    layout: ModelLayout,
    adapted: Collection[str],
    weights: int,
    itemsize: int,
) -> Memory:
    """What an edit holds on the device; `weights` bytes are the model's own."""
    config, train = work.config, work.train
    vocabulary = int(model.config.get_text_config().vocab_size)
    every = train.every + work.asked
    rows = min(TOGETHER, every.rows)
    generation = cache_bytes(model.config, rows, every.longest, itemsize)
    generation += 2 * widest(model, layout) * rows * every.longest * itemsize
    states = train.source.tokens + 2 * train.hold.tokens
    if work.paired:
        states += len(work.layers.tapped) * sum(train.source.replies)
    # The losses of both sets are added up before the backward pass.
    top = work.depth - 1 if config.supervised_weight else work.last
    trained_blocks = range(min(work.layers.adapted), top + 1)
    activations = 0
    for texts in (train.source, train.hold):
        held = min(config.batch, texts.rows)
        activations += activation_bytes(
            model, layout, trained_blocks, adapted, held, texts.longest, itemsize
        )
    if config.supervised_weight:
        held = min(config.batch, train.source.rows)
        activations += held * train.source.longest * vocabulary * (itemsize + 8)
    longest = max(work.validation.source.longest, work.validation.hold.longest)
    return Memory(
        weights=weights,
        generation=generation,
        cached=state_bytes(work.hidden, states, itemsize),
        adapter=training_bytes(work.adapter),
        activations=activations,
        judging=min(LOGITS, 2 * JUDGED * longest * vocabulary) * itemsize,
    )


def disk_bytes(work: Workload) -> int:
    """What a run directory takes: a checkpoint while the next is written, adapter, jury, texts.

    A checkpoint holds the adapter five times (weights, average, best, Adam's moments), float32.
    """
    width = max(work.config.discriminator_width, 1)
    jury = 3 * 4 * len(work.layers.tapped) * (work.hidden + 2) * width
    texts = 2 * 4 * (work.asked.tokens + work.train.source.tokens) + 2**20
    return 2 * (5 * 4 * work.adapter + jury) + 4 * work.adapter + jury + texts
