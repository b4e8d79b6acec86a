"""Batches with cached reference states, for the methods that train on hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.activation_cache import ActivationCache
from retouch.models.editable_model import EditableModel
from retouch.models.oom import split_on_oom
from retouch.models.segment import Segment
from retouch.representations.batch import PaddedBatch, Positions, make_batches
from retouch.representations.cached_states import CachedStates, cache_states
from retouch.representations.discriminator import States
from retouch.representations.losses import normalized_mse_loss

T = TypeVar("T")
Reference = Callable[[PaddedBatch, Positions], States]
"""The reference states `[n, hidden]` by layer at `n` positions of a batch."""


class StateBatches:
    """Divides chats into batches and caches their segment inputs and reference states.

    A batch that exceeds the memory is split into smaller ones. The base model's states are
    references, so no adapter may be attached yet.
    """

    def __init__(
        self, editable: EditableModel, segment: Segment, layers: Sequence[int], batch_size: int
    ) -> None:
        """Create an empty cache.

        Args:
            editable: the base model.
            segment: the blocks that are trained.
            layers: the layers whose outputs are trained on.
            batch_size: chats per batch.
        """
        self._segment, self._layers, self._batch_size = segment, tuple(layers), batch_size
        self._pad = int(editable.tokenizer.pad_token_id)
        # With a device memory limit, half of what the weights leave is for training steps.
        limit = None if editable.free_bytes is None else editable.free_bytes // 2
        self._cache = ActivationCache(editable.device, limit)

    def cache(
        self,
        chats: Sequence[TokenizedChat],
        *,
        positions: Callable[[PaddedBatch], Positions] = PaddedBatch.response_positions,
        layers: Sequence[int] | None = None,
        reference: Reference | None = None,
    ) -> list[CachedStates]:
        """Cache the chats in batches.

        Args:
            chats: tokenized chats with responses.
            positions: the positions that are trained on (default: those that predict the response).
            layers: the layers that are trained on, in place of the instance's.
            reference: the reference states (default: the base model's at the positions).
        """
        layers = self._layers if layers is None else tuple(layers)

        def run(batch: PaddedBatch) -> CachedStates:
            at = positions(batch)
            return cache_states(
                self._segment,
                batch,
                self._cache,
                positions=at,
                layers=layers,
                reference=None if reference is None else reference(batch, at),
            )

        return list(self._run(chats, run))

    def cache_pairs(
        self, chats: Sequence[TokenizedChat], counterparts: Sequence[TokenizedChat]
    ) -> list[CachedStates]:
        """Cache chats with their counterparts' states along the response as the reference."""

        def reference(batch: PaddedBatch, _: Positions) -> States:
            return self._response_states(batch.counterpart(counterparts, self._pad))

        return self.cache(chats, reference=reference)

    def response_means(self, chats: Sequence[TokenizedChat]) -> dict[int, torch.Tensor]:
        """The base model's mean state at each response offset, `[offsets, hidden]` by layer."""
        size = max(len(chat.ids) - chat.start for chat in chats)
        counts, totals = torch.zeros(size), dict[int, torch.Tensor]()

        def run(batch: PaddedBatch) -> tuple[torch.Tensor, States]:
            return batch.response_offsets(batch.response_positions()), self._response_states(batch)

        for offsets, states in self._run(chats, run):
            counts += torch.bincount(offsets, minlength=size)
            for layer, values in states.items():
                if layer not in totals:
                    totals[layer] = torch.zeros(size, values.shape[-1], device=values.device)
                totals[layer].index_add_(0, offsets.to(values.device), values.float())
        return {layer: total / counts[:, None].to(total.device) for layer, total in totals.items()}

    def _response_states(self, batch: PaddedBatch) -> States:
        states = self._segment.forward_states(batch.ids, self._layers)
        at = batch.response_positions()
        return {layer: states[layer][at] for layer in self._layers}

    def _run(self, chats: Sequence[TokenizedChat], run: Callable[[PaddedBatch], T]) -> Iterator[T]:
        """Run a function on the chats in batches, in halves where memory runs out."""
        for batch in make_batches(chats, self._batch_size, self._pad):

            def run_rows(rows: Sequence[int], batch: PaddedBatch = batch) -> list[T]:
                return [run(batch.select(rows))]

            yield from split_on_oom(run_rows, range(len(batch.index)))


def reference_loss(segment: Segment, cached: CachedStates) -> torch.Tensor:
    """`normalized_mse_loss` of the current states to the reference, mean over the layers."""
    reference = cached.states
    current = cached.current(segment, tuple(reference))
    losses = [normalized_mse_loss(current[layer], reference[layer]) for layer in reference]
    return torch.stack(losses).mean()
