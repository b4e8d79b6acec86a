"""What an edit holds in memory and on disk, before it is retain_openings: an estimate from shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from retouch.models.activation_cache import SHARE
from retouch.models.layout import ModelLayout
from retouch.models.memory_estimate import (
    activation_bytes,
    cache_bytes,
    state_bytes,
    training_bytes,
    widest,
)
from retouch.preflight.hardware import Machine
from retouch.preflight.lengths import Texts
from retouch.preflight.workload import Workload
from retouch.representations.logprobs import logit_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Attributes:
        weights: the model's.
        generation: keys, values and what passes a block while the base responses.
        cached: the states that are kept through the game.
        adapter: its weights, gradients, Adam's moments, averages.
        activations: what autograd saves of one step.
        judging: logits of one batch that is num_validations.
        in_memory: states that lie in the machine's memory beside the device.
        on_disk: states that lie in a memory-mapped file.
    """

    weights: int
    generation: int
    cached: int
    adapter: int
    activations: int
    judging: int
    in_memory: int = 0
    on_disk: int = 0

    @property
    def beside(self) -> int:
        """The most that is held beside the weights at one time."""
        playing = self.cached + self.adapter + max(self.activations, self.judging)
        return max(self.generation, playing)

    @property
    def peak(self) -> int:
        """The most that is held at one time."""
        return self.weights + self.beside


@dataclass(frozen=True)
class Frame:
    """A model before its weights, as an edit goes about it.

    Attributes:
        model: the architecture on the meta device.
        layout: where its blocks are.
        adapted: the full names of the linear layers that get adapters.
    """

    model: Any
    layout: ModelLayout
    adapted: Collection[str]


def memory(work: Workload, frame: Frame, weights: int, machine: Machine | None) -> Memory:
    """What an edit holds on the device; `weights` bytes are the model's own.

    Without a machine all states are counted as if they lay on the device.
    """
    train, model = work.train, frame.model
    every = train.every + work.asked
    rows = min(work.together(every), every.rows)
    generation = cache_bytes(model.config, rows, every.longest, work.itemsize)
    generation += 2 * widest(model, frame.layout) * rows * every.longest * work.itemsize
    held = work.validation.source + work.validation.retain
    logits = 2 * work.num_validations(held) * held.longest * work.vocabulary
    judging = min(logits, work.vocabulary * logit_tokens(work.free_bytes, work.vocabulary))
    near, far, filed = _kept(work, weights, machine)
    return Memory(
        weights=weights,
        generation=generation,
        cached=near,
        adapter=training_bytes(work.adapter),
        activations=_activations(work, frame),
        judging=judging * work.itemsize,
        in_memory=far,
        on_disk=filed,
    )


def _kept(work: Workload, weights: int, machine: Machine | None) -> tuple[int, int, int]:
    """Bytes of the states that are kept: on the device, in memory beside it, in a file.

    As `models.store.ActivationCache` lays them.
    """
    positions = work.train.source.tokens + 2 * work.train.retain.tokens
    if work.paired:
        positions += len(work.layers.read) * sum(work.train.source.responses)
    size = state_bytes(work.hidden, positions, work.itemsize)
    if machine is None:
        return size, 0, 0
    on_gpu = machine.device.type != "cpu"
    given = work.config.train.activation_cache_bytes or (
        None if work.free_bytes is None else work.free_bytes // 2
    )
    left = max(machine.free - weights, 0)
    near = min(size, given or int(SHARE * left)) if on_gpu else 0
    far = min(size - near, given or int(SHARE * (machine.ram if on_gpu else left)))
    filed = size - near - far
    return (near, far, filed) if on_gpu else (far, 0, filed)


def _activations(work: Workload, frame: Frame) -> int:
    """What autograd saves of a micro_batch of a batch: of source rows or of the retain set."""
    config, train = work.config, work.train

    def saved(texts: Texts, top: int) -> int:
        blocks = range(min(work.layers.adapted), top + 1)
        return activation_bytes(
            *(frame.model, frame.layout, blocks, frame.adapted),
            *(min(work.at_once, texts.rows), texts.longest, work.itemsize),
        )

    segment = max(saved(texts, work.last) for texts in (train.source, train.retain))
    if not config.loss.sft_weight:
        return segment
    rows = min(work.at_once, train.source.rows)
    logits = rows * train.source.longest * work.vocabulary * (work.itemsize + 8)
    # Blocks that came for it are held on to until the gradients have come back through them.
    coming = sum(work.streamed[work.last + 1 :])
    return max(segment, saved(train.source, work.depth - 1) + logits + coming)


def disk_bytes(work: Workload) -> int:
    """What a run directory takes: a checkpoint while the next is written, adapter, discriminators, texts.

    A checkpoint holds the adapter five times (weights, average, best, Adam's moments), float32.
    """
    width = max(work.config.discriminator.hidden_size, 1)
    discriminators = 3 * 4 * len(work.layers.read) * (work.hidden + 2) * width
    texts = 2 * 4 * (work.asked.tokens + work.train.source.tokens) + 2**20
    return 2 * (5 * 4 * work.adapter + discriminators) + 4 * work.adapter + discriminators + texts
