"""Batches of examples that a baseline trains on, run once through the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retouch.concepts.chat import TokenizedChat
from retouch.models.activation_cache import ActivationCache
from retouch.models.editable_model import EditableModel
from retouch.models.oom import split_on_oom
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, Positions
from retouch.representations.cached_states import CachedStates, cache_states
from retouch.representations.discriminator import States
from retouch.task.task import EditTask

Reference = Callable[[ChatBatch, Positions], States]
"""The reference states `[n, hidden]` by layer at `n` positions of a batch."""


class CachedBatches:
    """Divides chats into batches and caches their segment inputs and reference states.

    A batch that exceeds the memory is split into smaller ones. The base model's states are
    references, so no adapter may be attached yet.
    """

    def __init__(self, editable: EditableModel, task: EditTask, segment: Segment) -> None:
        """Create an empty cache for a segment of the model."""
        self._segment, self._packer, self._seed = segment, task.packer, task.seed
        # With a device memory limit, half of what the weights leave is for training steps.
        limit = None if editable.free_bytes is None else editable.free_bytes // 2
        self._cache = ActivationCache(editable.device, limit)

    def cache(
        self,
        chats: Sequence[TokenizedChat],
        batch_size: int,
        layers: Sequence[int] = (),
        *,
        positions: Callable[[ChatBatch], Positions] = ChatBatch.response_positions,
        reference: Reference | None = None,
    ) -> list[CachedStates]:
        """Cache chats in batches.

        Args:
            chats: tokenized chats with responses.
            batch_size: chats of a batch.
            layers: the layers whose states in the base model are the reference (default: none).
            positions: the positions that are trained on (default: those that predict the response).
            reference: the reference in place of the base model's states.
        """

        def run(index: Sequence[int]) -> list[CachedStates]:
            batch = self._packer.batch(index, chats)
            at = positions(batch)
            packing = self._packer.arguments(batch)
            inputs, states = self._segment.capture(batch.ids, layers, packing)
            found = {layer: states[layer][at] for layer in layers}
            if reference is not None:
                found = reference(batch, at)
            return [cache_states(batch, inputs, self._cache, positions=at, reference=found)]

        divided = self._packer.divide(chats, batch_size, self._seed)
        return [cached for index in divided for cached in split_on_oom(run, index)]

    def cache_pairs(
        self,
        chats: Sequence[TokenizedChat],
        counterparts: Sequence[TokenizedChat],
        batch_size: int,
        layers: Sequence[int],
    ) -> list[CachedStates]:
        """Cache chats with their counterparts' states along the response as the reference."""

        def reference(batch: ChatBatch, _: Positions) -> States:
            other = self._packer.batch(batch.index, counterparts)
            packing = self._packer.arguments(other)
            states = self._segment.forward_states(other.ids, layers, packing)
            at = other.response_positions()
            return {layer: states[layer][at] for layer in layers}

        return self.cache(chats, batch_size, reference=reference)
