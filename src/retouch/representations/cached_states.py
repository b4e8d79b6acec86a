"""Batches with reference states, kept in an activation cache for a whole training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retouch.models.activation_cache import ActivationCache, Cached
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.batch import ChatBatch, Positions
from retouch.representations.discriminator import States


@dataclass(frozen=True)
class CachedStates:
    """A batch, its segment inputs and its reference states at some positions.

    Attributes:
        batch: the tokenized batch.
        positions: row and position `[n]` of the reference states, on the model's device.
    """

    batch: ChatBatch
    positions: Positions
    _inputs: Cached
    _states: Cached

    @property
    def inputs(self) -> SegmentInputs:
        """The segment's inputs."""
        inputs: SegmentInputs = self._inputs()
        return inputs

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


def cache_states(
    batch: ChatBatch,
    inputs: SegmentInputs,
    cache: ActivationCache,
    *,
    positions: Positions,
    reference: States,
) -> CachedStates:
    """Cache a batch's segment inputs and reference states.

    Args:
        batch: the tokenized batch.
        inputs: the segment's inputs for it.
        cache: where the tensors are kept.
        positions: the positions of the reference states.
        reference: the reference states `[n, hidden]` by layer: the base model's own, or a
            counterpart's.
    """
    device = inputs.hidden.device
    return CachedStates(
        batch,
        (positions[0].to(device), positions[1].to(device)),
        cache.put(inputs),
        cache.put(reference),
    )
