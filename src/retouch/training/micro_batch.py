"""Batches of a generator step, in micro-batches, with their cached activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from retouch.models.activation_cache import Cached
from retouch.representations.batch import ChatBatch, Positions
from retouch.representations.cached_states import CachedStates
from retouch.representations.discriminator import States


@dataclass
class Normalizers:
    """The divisors of a batch's losses, the same in each of its micro-batches.

    Attributes:
        positions: the number of positions that the discriminators read.
        weights: the sum of the weights of all response positions.
        states: for each layer `losses.squared_norm` of the reference states.
    """

    positions: int
    weights: float
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, states: States, share: float) -> None:
        """Add the norms of a micro-batch."""
        for layer, norm in states.items():
            size = share * norm
            self.states[layer] = self.states[layer] + size if layer in self.states else size


@dataclass(frozen=True)
class MicroBatch:
    """Chats of a batch that run at once: all of them, unless memory or several processes divide it.

    Its reference states are the target counterparts' for source examples, and the base model's own
    for the retain set. Positions and weights are on the device.

    Attributes:
        cached: the chats with their segment inputs and reference states.
        is_dummy: whether its chats are another process's, and it runs only to stay in step.
        read_positions: the states that the discriminators read.
        responses: the states `[n]` that predict the responses; for source examples with a prefill
            also those at each of its tokens, which predict the response's first one.
        response_tokens: the tokens `[n]` that they predict.
        response_weights: the weight `[n]` of each of them.
        weights: a weight for each reference position; None: 1 each.
        reference_reads: the states `[n, hidden]` by layer of the counterparts, or of the base model
            for the retain set, at the positions that the discriminators read; empty without.
        base_logprobs: the base model's log-probabilities `[n, vocabulary]` at `responses`, in half
            precision: of the retain set, or after the target counterparts; None where no loss
            reads them.
        other_tokens: the second choice `[n]` at `responses`, whose first choice is the response;
            None where there are no choices.
        reference_logprobs: the base model's log-probability `[n]` of each response token, of
            responses to unlearn; None otherwise.
    """

    cached: CachedStates
    is_dummy: bool
    read_positions: Positions
    responses: Positions
    response_tokens: torch.Tensor
    response_weights: torch.Tensor
    weights: torch.Tensor | None
    reference_reads: States
    base_logprobs: Cached | None = None
    other_tokens: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None

    @property
    def batch(self) -> ChatBatch:
        """The tokenized chats."""
        return self.cached.batch


@dataclass(frozen=True)
class ReadStates:
    """States of some chats at the positions that the discriminators read.

    Attributes:
        index: the numbers of the chats.
        counts: the number of states of each.
        is_dummy: whether they are another process's.
        states: `[n, hidden]` by layer, chat after chat.
    """

    index: tuple[int, ...]
    counts: tuple[int, ...]
    is_dummy: bool
    states: States


@dataclass
class Batch:
    """The examples of one generator step.

    Attributes:
        index: the numbers of its chats, those of other processes included.
        micro_batches: those of this process; every process has equally many.
        normalizers: the divisors of its losses.
    """

    index: list[int]
    micro_batches: list[MicroBatch]
    normalizers: Normalizers
