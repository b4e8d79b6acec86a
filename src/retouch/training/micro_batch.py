"""Batches of a generator step, in micro-batches, with their cached activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from retouch.representations.batch import PaddedBatch, Positions
from retouch.representations.cached_states import CachedStates
from retouch.representations.discriminator import States


@dataclass
class Normalizers:
    """The divisors of a batch's losses, the same in each of its micro-batches.

    Attributes:
        positions: the number of positions that the discriminators read.
        states: for each layer `losses.squared_norm` of the reference states.
    """

    positions: int
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, states: States, share: float) -> None:
        """Add the norms of a micro-batch."""
        for layer, norm in states.items():
            size = share * norm
            self.states[layer] = self.states[layer] + size if layer in self.states else size


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that run at once: all of them, unless memory or several processes divide it.

    Its reference states are the target counterparts' for source examples, and the base model's own
    for the retain set. Positions and weights are on the device.

    Attributes:
        cached: the rows with their segment inputs and reference states.
        counterpart: the target counterparts of its rows; None without pairs.
        is_dummy: whether its rows are another process's, and it runs only to stay in step.
        read_positions: the states that the discriminators read.
        weights: a weight `[n]` for each reference position; None: 1 each.
    """

    cached: CachedStates
    counterpart: PaddedBatch | None
    is_dummy: bool
    read_positions: Positions
    weights: torch.Tensor | None

    @property
    def batch(self) -> PaddedBatch:
        """The tokenized rows."""
        return self.cached.batch


@dataclass(frozen=True)
class StreamedStates:
    """States of a micro-batch that is read once and not cached.

    Attributes:
        batch: the tokenized rows.
        is_dummy: whether they are another process's.
        read_positions: the states that the discriminators read.
        states: the outputs `[rows, tokens, hidden]` by layer.
    """

    batch: PaddedBatch
    is_dummy: bool
    read_positions: Positions
    states: States


@dataclass
class Batch:
    """The examples of one generator step.

    Attributes:
        padded: all of its rows, those of other processes included.
        micro_batches: those of this process; every process has equally many.
        normalizers: the divisors of its losses.
    """

    padded: PaddedBatch
    micro_batches: list[MicroBatch]
    normalizers: Normalizers
