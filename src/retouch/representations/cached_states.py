"""Batches with reference states, kept in an activation cache for a whole training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.models.activation_cache import ActivationCache, Cached
from retouch.models.segment import BlockArgs, Segment, SegmentInputs
from retouch.representations.batch import PaddedBatch, Positions
from retouch.representations.discriminator import States


@dataclass(frozen=True)
class CachedStates:
    """A batch, its segment inputs and its reference states at some positions.

    Attributes:
        batch: the tokenized batch.
        positions: row and position `[n]` of the reference states, on the model's device.
    """

    batch: PaddedBatch
    positions: Positions
    _inputs: Cached
    _states: Cached

    @property
    def inputs(self) -> SegmentInputs:
        """The segment's inputs."""
        hidden, args = self._inputs()
        return SegmentInputs(hidden, tuple(BlockArgs(*one) for one in args))

    @property
    def states(self) -> States:
        """The reference states `[n, hidden]` by layer."""
        states: States = self._states()
        return states

    def current(self, segment: Segment, layers: Sequence[int] | None = None) -> States:
        """The states `[n, hidden]` at `positions` under the present adapters; gradients flow."""
        layers = tuple(self.states) if layers is None else tuple(layers)
        states = segment.forward(self.inputs, layers)
        return {layer: states[layer][self.positions] for layer in layers}


@torch.no_grad()
def cache_states(
    segment: Segment,
    batch: PaddedBatch,
    cache: ActivationCache,
    *,
    positions: Positions,
    layers: Sequence[int] = (),
    reference: States | None = None,
) -> CachedStates:
    """Run a batch through the model once and cache its segment inputs and reference states.

    Args:
        segment: the segment that is trained.
        batch: the tokenized batch.
        cache: where the tensors are kept.
        positions: the positions of the reference states.
        layers: the layers whose present states are the reference.
        reference: other reference states `[n, hidden]` by layer, such as a counterpart's.
    """
    inputs = segment.capture_inputs(batch.ids)
    if reference is None:
        states = segment.forward(inputs, layers) if layers else {}
        reference = {layer: states[layer][positions] for layer in layers}
    device = inputs.hidden.device
    return CachedStates(
        batch,
        (positions[0].to(device), positions[1].to(device)),
        cache.put((inputs.hidden, [(one.positional, one.keyword) for one in inputs.args])),
        cache.put(reference),
    )
