"""Divide examples into batches and micro-batches, and run them once through the base model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.activation_cache import ActivationCache, Cached
from retouch.representations.batch import ChatBatch, Positions
from retouch.representations.cached_states import cache_states
from retouch.representations.discriminator import States
from retouch.representations.logprobs import token_logprobs
from retouch.representations.losses import squared_norm
from retouch.training.context import TrainingContext
from retouch.training.micro_batch import Batch, MicroBatch, Normalizers, ReadStates

# Of each token of a prefill relative to one of the response, which is shorter: with more, the model
# begins the response again and again.
PREFILL_WEIGHT = 0.3


@dataclass(frozen=True)
class _Reference:
    """What a loss compares chats with; the arguments of `Batcher.prepare`."""

    counterparts: Sequence[TokenizedChat]
    retain: bool
    others: Sequence[TokenizedChat]
    unlearn: bool


class Batcher:
    """Prepares batches whose base states stay in an activation cache."""

    def __init__(self, context: TrainingContext, cache: ActivationCache) -> None:
        self._context, self._cache = context, cache
        self._positions = context.method.discriminator.positions

    def prepare(
        self,
        chats: Sequence[TokenizedChat],
        batch_size: int,
        micro_batch_size: int,
        *,
        counterparts: Sequence[TokenizedChat] = (),
        retain: bool = False,
        others: Sequence[TokenizedChat] = (),
        unlearn: bool = False,
        progress: Progress = no_progress,
    ) -> list[Batch]:
        """The chats in batches, cached for the whole training.

        Args:
            chats: tokenized, with responses.
            batch_size: chats of a batch.
            micro_batch_size: maximum number of chats that run at a time.
            counterparts: the target counterpart of each chat; none without pairs.
            retain: whether the base model's states and log-probabilities are the reference.
            others: for each chat of one response token the same prompt with another token: the
                base's log-probabilities are the reference, with both tokens made equally likely.
            unlearn: whether the base model's log-probabilities of the responses are the reference.
            progress: called after every batch.
        """
        against = _Reference(counterparts, retain, others, unlearn)
        batches: list[Batch] = []
        for index in self._context.packer.divide(chats, batch_size, self._context.seed):
            batches.append(self._batch(index, chats, micro_batch_size, against))
            name = "retain" if retain else "source"
            progress(f"base states of the {name} examples", len(batches) * batch_size, len(chats))
        # One collective operation for all batches.
        distributed.all_reduce(
            [norm for batch in batches for norm in batch.normalizers.states.values()]
        )
        return batches

    def stream(
        self, chats: Sequence[TokenizedChat], batch_size: int, micro_batch_size: int
    ) -> Iterator[ReadStates]:
        """The base model's states of chats, in micro-batches; nothing is cached."""
        context = self._context
        for index in self._context.packer.divide(chats, batch_size, self._context.seed):
            for part, is_dummy in _divide(index, micro_batch_size):
                batch = context.packer.batch(part, chats)
                states = context.segment.forward_states(
                    batch.ids, context.read_layers, context.packer.arguments(batch)
                )
                yield self._read_states(batch, is_dummy, self._read(states, batch))

    @torch.no_grad()
    def current_states(self, batches: Iterable[Batch]) -> Iterator[ReadStates]:
        """The states of prepared batches under the present adapters."""
        segment, layers = self._context.segment, self._context.read_layers
        for one in (micro for batch in batches for micro in batch.micro_batches):
            states = segment.forward(one.cached.inputs, layers)
            yield self._read_states(one.batch, one.is_dummy, self._read(states, one.batch))

    def reference_states(self, batches: Iterable[Batch]) -> Iterator[ReadStates]:
        """The states of the counterparts of prepared batches, or the base's of the retain set."""
        for one in (micro for batch in batches for micro in batch.micro_batches):
            yield self._read_states(one.batch, one.is_dummy, one.reference_reads)

    def _read_states(self, batch: ChatBatch, is_dummy: bool, states: States) -> ReadStates:
        # A counterpart's response has as many tokens.
        spans = zip(batch.starts, batch.ends, strict=True)
        counts = tuple(min(end - start, self._positions) for start, end in spans)
        return ReadStates(batch.index, counts, is_dummy, states)

    def _batch(
        self,
        index: list[int],
        chats: Sequence[TokenizedChat],
        micro_batch_size: int,
        against: _Reference,
    ) -> Batch:
        lengths = [len(chats[i].ids) - chats[i].start for i in index]
        count = sum(min(length, self._positions) for length in lengths)
        first = self._context.method.loss.first_token_weight
        size = (
            sum(lengths)
            + len(lengths) * (first - 1.0)
            + PREFILL_WEIGHT * sum(chats[i].prefill for i in index)
        )
        batch = Batch(index, [], Normalizers(count, size))
        for part, is_dummy in _divide(index, micro_batch_size):
            micro = self._micro_batch(part, chats, against, is_dummy)
            norms = {
                layer: squared_norm(states, micro.weights)
                for layer, states in micro.cached.states.items()
            }
            # The chats of a dummy are counted by their own process.
            batch.normalizers.add(norms, 0.0 if is_dummy else 1.0)
            batch.micro_batches.append(micro)
        return batch

    @torch.no_grad()
    def _micro_batch(
        self,
        index: list[int],
        chats: Sequence[TokenizedChat],
        against: _Reference,
        is_dummy: bool,
    ) -> MicroBatch:
        context, loss = self._context, self._context.method.loss
        segment, device = context.segment, context.editable.device
        batch = context.packer.batch(index, chats)
        responses = batch.response_positions()
        at_responses = _on(device, responses)
        response_weights = batch.position_weights(responses, loss.first_token_weight).to(device)
        response_tokens = batch.response_tokens()
        layers = (*context.read_layers, segment.last) if against.retain or against.others else ()
        if against.unlearn:
            layers = (segment.last,)
        packing = context.packer.arguments(batch)
        inputs, states = segment.capture(batch.ids, layers, packing)
        positions, weights = responses, None
        reference: States = {}
        reads: States = {}
        base_logprobs = other_tokens = reference_logprobs = None
        if against.retain:
            reads = self._read(states, batch)
            if loss.retain_weight:
                positions = batch.token_positions()
                reference = {segment.last: states[segment.last][positions]}
            if loss.kl_weight:
                base_logprobs = self._base_logprobs(states[segment.last][at_responses])
        elif against.others:
            states_at = states[segment.last][at_responses]
            other_tokens = torch.tensor([against.others[i].ids[-1] for i in index]).to(device)
            tokens = response_tokens, other_tokens
            base_logprobs = self._base_logprobs(states_at, tokens)
        elif against.unlearn:
            logits = segment.logits(states[segment.last][at_responses])
            reference_logprobs = token_logprobs(logits, response_tokens)
        elif against.counterparts:
            target = context.packer.batch(index, against.counterparts)
            layers = context.read_layers
            if loss.distillation_weight:
                layers = (*layers, segment.last)
            states = segment.forward_states(target.ids, layers, context.packer.arguments(target))
            reads = self._read(states, target)
            # The response may begin at every token of a prefill, as it does after the last one.
            prefilled, chats_of = batch.prefill_positions()
            decisions = _decisions(target, chats_of)
            first_tokens = batch.ids[_decisions(batch, chats_of, offset=0)]
            shares = torch.full((len(chats_of),), PREFILL_WEIGHT)
            if loss.distillation_weight:  # both responses have the same tokens
                at_targets = _on(device, _joined(target.response_positions(), decisions))
                base_logprobs = self._base_logprobs(states[segment.last][at_targets])
            shared = batch.common_prompt_suffix(target) if loss.match_prompt_suffix else ()
            positions = batch.response_positions(prompt_tokens=shared)
            weights = torch.cat(
                [batch.position_weights(positions, loss.first_token_weight), shares]
            )
            weights = weights.to(device)
            positions = _joined(positions, prefilled)
            at = _joined(target.response_positions(prompt_tokens=shared), decisions)
            reference = {layer: states[layer][at] for layer in context.read_layers}
            at_responses = _on(device, _joined(responses, prefilled))
            response_weights = torch.cat([response_weights, shares.to(device)])
            response_tokens = torch.cat([response_tokens, first_tokens])
        return MicroBatch(
            cache_states(batch, inputs, self._cache, positions=positions, reference=reference),
            is_dummy,
            self._read_positions(batch),
            at_responses,
            response_tokens,
            response_weights,
            weights,
            reads,
            base_logprobs,
            other_tokens,
            reference_logprobs,
        )

    def _base_logprobs(
        self, states: torch.Tensor, balanced: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> Cached:
        """Log-probabilities `[n, vocabulary]` of the last block's outputs `[n, hidden]`.

        Of the tokens `balanced`, two for each output, both get the mean of their probabilities.
        """
        logprobs = self._context.segment.logits(states).float().log_softmax(-1)
        if balanced is not None:
            pair = torch.stack(balanced, 1).to(logprobs.device)
            mean = logprobs.gather(1, pair).logsumexp(1, keepdim=True) - math.log(2.0)
            logprobs = logprobs.scatter(1, pair, mean.expand(-1, 2))
        # Half of the memory of float32, and exact to a thousandth of a nat.
        return self._cache.put(logprobs.half())

    def _read(self, states: States, batch: ChatBatch) -> States:
        """The states at the positions that the discriminators read."""
        at = self._read_positions(batch)
        return {layer: states[layer][at] for layer in self._context.read_layers}

    def _read_positions(self, batch: ChatBatch) -> Positions:
        rows, positions = batch.response_positions(self._positions)
        device = self._context.editable.device
        return rows.to(device), positions.to(device)


def _decisions(batch: ChatBatch, chats: torch.Tensor, offset: int = -1) -> Positions:
    """The last position `[n]` of the prompt of some chats, or the first of their responses."""
    rows, starts = torch.tensor(batch.rows), torch.tensor(batch.starts)
    return rows[chats], starts[chats] + offset


def _joined(one: Positions, other: Positions) -> Positions:
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])


def _on(device: torch.device, positions: Positions) -> Positions:
    return positions[0].to(device), positions[1].to(device)


def _divide(index: list[int], micro_batch_size: int) -> Iterator[tuple[list[int], bool]]:
    """This process's micro-batches of a batch: numbers of chats, and whether it is a dummy.

    Every process gets equally many, since processes that share a model's weights must run it
    together.
    """
    local = list(distributed.shard(index))
    longest = -(-len(index) // distributed.world_size())
    for begin in range(0, longest, micro_batch_size):
        chosen = local[begin : begin + micro_batch_size]
        yield (chosen, False) if chosen else (index[:1], True)
