"""Divide examples into batches and micro-batches, and run them once through the base model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models import distributed
from retouch.models.activation_cache import ActivationCache
from retouch.representations.batch import PaddedBatch, Positions, make_batches
from retouch.representations.cached_states import cache_states
from retouch.representations.discriminator import States
from retouch.representations.losses import squared_norm
from retouch.training.context import TrainingContext
from retouch.training.micro_batch import Batch, MicroBatch, Normalizers, StreamedStates


class Batcher:
    """Prepares batches whose base states stay in an activation cache."""

    def __init__(self, context: TrainingContext, cache: ActivationCache) -> None:
        self._context, self._cache = context, cache
        self._batch_size = context.method.train.batch_size
        self._positions = context.method.discriminator.positions

    def prepare(
        self,
        chats: Sequence[TokenizedChat],
        micro_batch_size: int,
        *,
        counterparts: Sequence[TokenizedChat] = (),
        cache_base: bool = False,
    ) -> list[Batch]:
        """The chats in batches, cached for the whole training.

        Args:
            chats: tokenized, with responses.
            micro_batch_size: maximum number of rows that run at a time.
            counterparts: the target counterpart of each chat; none without pairs.
            cache_base: whether the base model's states are the reference: for the retain set.
        """
        batches = list(self._batches(chats, micro_batch_size, counterparts, cache_base))
        # One collective operation for all batches.
        distributed.all_reduce(
            [norm for batch in batches for norm in batch.normalizers.states.values()]
        )
        return batches

    def stream(
        self, chats: Sequence[TokenizedChat], micro_batch_size: int
    ) -> Iterator[StreamedStates]:
        """The base model's states of chats in micro-batches; nothing is cached."""
        context = self._context
        for padded in make_batches(chats, self._batch_size, context.pad):
            for rows, is_dummy in _divide(len(padded.index), micro_batch_size):
                part = padded.select(rows)
                states = context.segment.forward_states(part.ids, context.read_layers)
                yield StreamedStates(part, is_dummy, self._read_positions(part), states)

    @torch.no_grad()
    def current_states(self, batches: Iterable[Batch]) -> Iterator[StreamedStates]:
        """The states of prepared batches under the present adapters."""
        segment, layers = self._context.segment, self._context.read_layers
        for one in (micro for batch in batches for micro in batch.micro_batches):
            states = segment.forward(one.cached.inputs, layers)
            yield StreamedStates(one.batch, one.is_dummy, one.read_positions, states)

    def _batches(
        self,
        chats: Sequence[TokenizedChat],
        micro_batch_size: int,
        counterparts: Sequence[TokenizedChat],
        cache_base: bool,
    ) -> Iterator[Batch]:
        pad = self._context.pad
        for padded in make_batches(chats, self._batch_size, pad):
            target = padded.counterpart(counterparts, pad) if counterparts else None
            count = len(padded.response_positions(self._positions)[0])
            batch = Batch(padded, [], Normalizers(count))
            for rows, is_dummy in _divide(len(padded.index), micro_batch_size):
                part = target.select(rows) if target is not None else None
                micro = self._micro_batch(padded.select(rows), part, is_dummy, cache_base)
                norms = {
                    layer: squared_norm(states, micro.weights)
                    for layer, states in micro.cached.states.items()
                }
                # The rows of a dummy are counted by their own process.
                batch.normalizers.add(norms, 0.0 if is_dummy else 1.0)
                batch.micro_batches.append(micro)
            yield batch

    @torch.no_grad()
    def _micro_batch(
        self, batch: PaddedBatch, target: PaddedBatch | None, is_dummy: bool, cache_base: bool
    ) -> MicroBatch:
        context, loss = self._context, self._context.method.loss
        positions, weights = batch.response_positions(), None
        reference: States | None = {}
        layers: tuple[int, ...] = ()
        if cache_base:
            positions, layers, reference = batch.token_positions(), (context.segment.last,), None
        elif target is not None:
            states = context.segment.forward_states(target.ids, context.read_layers)
            shared = batch.common_prompt_suffix(target) if loss.match_prompt_suffix else ()
            positions = batch.response_positions(prompt_tokens=shared)
            at = target.response_positions(prompt_tokens=shared)
            reference = {layer: states[layer][at] for layer in context.read_layers}
            weights = batch.position_weights(positions, loss.first_token_weight)
            weights = weights.to(context.editable.device)
        cached = cache_states(
            context.segment,
            batch,
            self._cache,
            positions=positions,
            layers=layers,
            reference=reference,
        )
        return MicroBatch(cached, target, is_dummy, self._read_positions(batch), weights)

    def _read_positions(self, batch: PaddedBatch) -> Positions:
        rows, positions = batch.response_positions(self._positions)
        device = self._context.editable.device
        return rows.to(device), positions.to(device)


def _divide(rows: int, micro_batch_size: int) -> Iterator[tuple[list[int], bool]]:
    """This process's micro-batches of a batch: row numbers, and whether it is a dummy.

    Every process gets equally many, since processes that share a model's weights must run it
    together.
    """
    local = list(distributed.shard(range(rows)))
    longest = -(-rows // distributed.world_size())
    for begin in range(0, longest, micro_batch_size):
        chosen = local[begin : begin + micro_batch_size]
        yield (chosen, False) if chosen else ([0], True)
