"""The examples of a training, run once through the frozen part of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ModelError
from retouch.core.types import Progress, no_progress
from retouch.models import distributed
from retouch.models.activation_cache import ActivationCache
from retouch.models.memory_estimate import activation_bytes
from retouch.models.oom import free_memory, is_out_of_memory
from retouch.representations.discriminator import States
from retouch.task.examples import EditExamples
from retouch.training.batcher import Batcher
from retouch.training.context import TrainingContext
from retouch.training.micro_batch import Batch, ReadStates

MAX_POOL_BATCHES = 12  # of source examples that are run for the discriminators of a round


@dataclass(frozen=True)
class Pool:
    """States `[n, hidden]` by layer that discriminators are trained to tell apart."""

    target: States
    nontarget: States


class EditDataset:
    """All batches of a training, with the base model's states cached.

    Attributes:
        examples: the tokenized examples.
        micro_batch_size: chats that run at once: as many as a device memory limit allows, or the
            batch; halved when memory runs out.
        source: the batches of source examples.
        retain: the batches of the retain set.
        sft: the batches of responses to learn; those of `source` where there are pairs. Where a gap
            between two choices is to be reduced, the batches of prompts after which both choices
            become equally likely.
        balances: whether `sft` is that.
        unlearned: the batches of the source's own responses, where a loss makes them less likely.
    """

    source: list[Batch]
    retain: list[Batch]
    sft: list[Batch]
    balances: bool
    unlearned: list[Batch]

    def __init__(
        self,
        context: TrainingContext,
        examples: EditExamples,
        progress: Progress = no_progress,
    ) -> None:
        """Run every example once.

        Raises:
            ModelError: not even one chat at a time fits into memory.
        """
        self._context, self.examples, self._progress = context, examples, progress
        editable, train = context.editable, context.method.train
        # With a device memory limit, half of what the weights leave is for training steps.
        limit = None if editable.free_bytes is None else editable.free_bytes // 2
        self._cache = ActivationCache(editable.device, train.activation_cache_bytes or limit)
        self._batcher = Batcher(context, self._cache)
        self._positions = context.method.discriminator.positions
        largest = max(train.batch_size, train.retain_batch_size)
        fitting = _rows_that_fit(context, examples) or largest
        self.micro_batch_size = min(train.micro_batch_size or largest, largest, fitting)
        self.groups = _two_groups(examples)
        # The discriminators are tested on the last fifth of the examples.
        self._fitted = set(range(_num_fitted(len(examples.source))))
        while not self._try_build():
            self._halve()

    @property
    def cached_bytes(self) -> dict[str, int]:
        """Bytes of cached activations by location."""
        cache = self._cache
        return {"device": cache.on_device, "memory": cache.in_memory, "disk": cache.on_disk}

    def rebuild_smaller(self) -> None:
        """Divide the batches into smaller micro-batches, since memory ran out.

        Raises:
            ModelError: not even one row at a time fits.
        """
        self._halve()
        while not self._try_build():
            self._halve()

    def _halve(self) -> None:
        # With several processes, the others would wait for this one in a collective operation.
        if self.micro_batch_size == 1 or distributed.world_size() > 1:
            raise ModelError(
                f"Out of memory with a micro-batch size of {self.micro_batch_size}.",
                "Set a smaller `micro_batch_size`, adapt fewer layers, or load the model in fewer "
                "bits (`dtype`, `quantize`).",
                code="out-of-memory",
            )
        self.micro_batch_size = (self.micro_batch_size + 1) // 2

    def _try_build(self) -> bool:
        """Prepare all batches; returns whether they fit into memory."""
        self._cache.clear()
        try:
            with self._context.editable.base_model():
                self._build()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        # Outside of the handler, whose traceback would keep the allocated tensors.
        free_memory()
        return False

    def _build(self) -> None:
        examples, size = self.examples, self.micro_batch_size
        train = self._context.method.train
        self.source = self._batcher.prepare(
            examples.source,
            train.batch_size,
            size,
            counterparts=examples.counterparts,
            progress=self._progress,
        )
        self.retain = self._batcher.prepare(
            examples.retain, train.retain_batch_size, size, retain=True, progress=self._progress
        )
        # With pairs the source examples themselves have the target responses.
        self.sft = self.source if examples.counterparts else []
        unpaired_gap = self.groups is not None and not examples.counterparts
        choices = _choices(examples) if unpaired_gap else None
        self.balances = choices is not None
        if self._context.method.loss.sft_weight > 0 and not examples.counterparts:
            learned, others = choices or (examples.chosen, ())
            self.sft = self._batcher.prepare(learned, train.batch_size, size, others=others)
        self.unlearned = []
        if self._context.method.loss.npo_weight > 0:
            self.unlearned = self._batcher.prepare(
                examples.rejected, train.batch_size, size, unlearn=True
            )
        chats = examples.target
        if examples.counterparts:
            target = self._collect(chats, self._batcher.reference_states(self.source))
        else:
            size = max(train.batch_size, train.retain_batch_size)
            streamed = self._batcher.stream(chats, size, self.micro_batch_size)
            target = self._collect(chats, streamed)
        fitted = set(range(_num_fitted(len(chats))))
        self.target_fit, self.target_test = self._split(target, chats, fitted)
        nontarget = {i for i, is_one in enumerate(examples.retain_nontarget) if is_one}
        self._retain_nontarget = {layer: states[:0] for layer, states in target.items()}
        if nontarget:
            retain = self._collect(examples.retain, self._batcher.reference_states(self.retain))
            self._retain_nontarget, _ = self._split(retain, examples.retain, nontarget)

    def _collect(self, chats: Sequence[TokenizedChat], reads: Iterable[ReadStates]) -> States:
        """The states `[n, hidden]` by layer that the discriminators read, in the chats' order.

        Every process runs its own chats, and has those of all processes afterwards. The states of
        chats that are not among `reads` are 0.
        """
        counts = self._counts(chats)
        begins = [0, *accumulate(counts)]
        device = self._context.editable.device
        found: States = {}
        for one in reads:
            offsets = accumulate(one.counts, initial=0)
            pairs = [
                (begins[i] + k, offset + k)
                for i, count, offset in zip(one.index, one.counts, offsets, strict=False)
                if i < len(chats)  # prefilled examples follow those that are read
                for k in range(count)
            ]
            into, at = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).T
            for layer, states in one.states.items():
                if layer not in found:
                    found[layer] = states.new_zeros(begins[-1], states.shape[-1])
                if not one.is_dummy:
                    found[layer][into] = states[at]
        distributed.all_reduce(found.values())
        return found

    def pools(self, number: int) -> tuple[Pool, Pool]:
        """The states under the present adapters that discriminators are fitted and tested on.

        Target states against those of the source and of non-target retain examples; or, where a
        gap between two groups is to be reduced, the source states of one group against the other.

        Args:
            number: of the round. Of many batches, every round runs others.
        """
        chats = self.examples.source
        parts = -(-len(self.source) // MAX_POOL_BATCHES)
        batches = self.source[number % parts :: parts]
        run = {i for batch in batches for i in batch.index}
        states = self._collect(chats, self._batcher.current_states(batches))
        fitted, tested = self._fitted & run, run - self._fitted
        if self.groups is not None:
            fit, test = (
                Pool(*(self._split(states, chats, part & group)[0] for group in self.groups))
                for part in (fitted, tested)
            )
            return fit, test
        fitted_states, _ = self._split(states, chats, fitted)
        tested_states, _ = self._split(states, chats, tested)
        nontarget = {
            layer: torch.cat([fitted_states[layer], self._retain_nontarget[layer]])
            for layer in self._context.read_layers
        }
        return Pool(self.target_fit, nontarget), Pool(self.target_test, tested_states)

    def _counts(self, chats: Sequence[TokenizedChat]) -> list[int]:
        """The number of states of each chat that the discriminators read."""
        return [min(self._positions, len(chat.ids) - chat.start) for chat in chats]

    def _split(
        self, states: States, chats: Sequence[TokenizedChat], chosen: Collection[int]
    ) -> tuple[States, States]:
        """The states of the chats whose numbers are chosen, and those of the others."""
        inside = torch.tensor([i in chosen for i in range(len(chats))])
        inside = inside.repeat_interleave(torch.tensor(self._counts(chats)))
        one, other = (
            {layer: found[mask.to(found.device)] for layer, found in states.items()}
            for mask in (inside, ~inside)
        )
        return one, other


def _rows_that_fit(context: TrainingContext, examples: EditExamples) -> int | None:
    """How many rows may run at once under a device memory limit; None without one.

    Half of what the weights leave is for the steps, and the estimate of what autograd saves is
    exact within a factor of two. A CPU would not report that the limit is exceeded.
    """
    editable, segment = context.editable, context.segment
    if editable.free_bytes is None:
        return None
    longest = max(len(chat.ids) for chat in (*examples.source, *examples.retain))
    layers = range(segment.first, segment.last + 1)
    names = editable.layout.linears(editable.model, layers)
    size = editable.model.dtype.itemsize
    row = activation_bytes(editable.model, editable.layout, layers, names, 1, longest, size)
    return max(1, editable.free_bytes // 4 // row)


def _two_groups(examples: EditExamples) -> tuple[set[int], set[int]] | None:
    """The numbers of the source examples of the two groups whose gap is to be reduced."""
    if examples.group_gap is None or not examples.reduce_gap:
        return None
    first, second = (
        {i for i, group in enumerate(examples.groups) if group == name}
        for name in examples.group_gap.groups
    )
    return first, second


def _choices(
    examples: EditExamples,
) -> tuple[list[TokenizedChat], list[TokenizedChat]] | None:
    """The prompts with the first token of either choice; None where both begin with one token."""
    cut = [TokenizedChat(chat.ids[: chat.start + 1], chat.start) for chat in examples.chosen]
    first, second = cut[0::2], cut[1::2]
    same = any(one.ids[-1] == other.ids[-1] for one, other in zip(first, second, strict=True))
    return None if same else (first, second)


def _num_fitted(count: int) -> int:
    return max(1, count * 4 // 5) if count > 1 else count
