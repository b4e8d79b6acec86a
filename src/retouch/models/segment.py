"""Run only some consecutive blocks of a model, from cached inputs, and the logits of states.

Below the first adapter nothing changes during training, and above the last block that is read
nothing is used. The input of the first block is computed once for each batch and cached, with
everything else that the segment's blocks are called with, as calibration does in quantisation.
A segment that ends at the last block leads to the logits, which are computed at chosen positions
only: the vocabulary is most of the work of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from retouch.core.errors import ModelError
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import (
    HIDDEN_STATES,
    edit_inputs,
    hidden_state,
    record_activations,
    removing,
)

LOGIT_POSITIONS = 512  # whose logits are computed together, each of which attends to the others


@dataclass(frozen=True)
class BlockArgs:
    """The arguments of a block besides its input."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]  # masks, position embeddings and the like


@dataclass(frozen=True)
class SegmentInputs:
    """What a segment is called with, for one batch."""

    hidden: torch.Tensor  # the input of the first block, `[rows, tokens, hidden]`
    # Of each block: full attention and sliding-window attention have masks of their own.
    args: tuple[BlockArgs, ...]


class _EndOfSegment(Exception):
    """Ends a forward pass at the end of the segment."""


class Segment:
    """The blocks `first` to `last` (both included, 0-based) of a model."""

    def __init__(self, editable: EditableModel, first: int, last: int) -> None:
        self._editable, self.first, self.last = editable, first, last
        self._returns_tuple = False

    @property
    def to_logits(self) -> bool:
        """Whether the segment ends at the model's last block."""
        return self.last == self._editable.layout.depth - 1

    def capture_inputs(
        self, ids: torch.Tensor, packing: Mapping[str, Any] | None = None
    ) -> SegmentInputs:
        """The segment's inputs for token ids `[rows, tokens]`.

        Args:
            ids: padded on the right, or packed.
            packing: the model's further arguments for packed chats (`ChatBatch.packing`).
        """
        return self.capture(ids, (), packing)[0]

    @torch.no_grad()
    def capture(
        self,
        ids: torch.Tensor,
        layers: Sequence[int],
        packing: Mapping[str, Any] | None = None,
    ) -> tuple[SegmentInputs, dict[int, torch.Tensor]]:
        """`inputs = capture_inputs(ids)` and `forward(inputs, layers)` in one pass."""
        hidden: list[torch.Tensor] = []
        args: list[BlockArgs] = []

        def capture(_: Any, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
            keyword = dict(keyword)
            given = positional[0] if positional else keyword.pop(HIDDEN_STATES)
            if not args:
                hidden.append(given.detach().clone())
            args.append(BlockArgs(positional[1:], keyword))
            if len(args) == self.last - self.first + 1 and self.last not in layers:
                raise _EndOfSegment

        blocks = self._editable.blocks[self.first : self.last + 1]
        with record_activations(self._editable, layers) as states:
            # Before other hooks, such as those that gather a sharded block's weights: the exception
            # would leave their work undone.
            handles = [
                block.register_forward_pre_hook(capture, with_kwargs=True, prepend=True)
                for block in blocks
            ]
            self._forward_model(ids, [*handles, *self._end_hooks()], packing)
        return SegmentInputs(hidden[0], tuple(args)), states

    @torch.no_grad()
    def forward_states(
        self,
        ids: torch.Tensor,
        layers: Sequence[int],
        packing: Mapping[str, Any] | None = None,
    ) -> dict[int, torch.Tensor]:
        """The outputs of layers: `forward(capture_inputs(ids), layers)` in one pass."""
        with record_activations(self._editable, layers) as states:
            self._forward_model(ids, self._end_hooks(), packing)
        return states

    def _end_hooks(self) -> list[RemovableHandle]:
        """Hooks that end a pass behind the last block."""

        def end(*_: Any) -> None:
            raise _EndOfSegment

        above = self._editable.blocks[self.last + 1 : self.last + 2]
        handles = [block.register_forward_pre_hook(end, prepend=True) for block in above]
        # The vocabulary at every token would take longer than the blocks.
        return handles or [self._editable.blocks[self.last].register_forward_hook(end)]

    def _forward_model(
        self,
        ids: torch.Tensor,
        handles: Sequence[RemovableHandle] = (),
        packing: Mapping[str, Any] | None = None,
    ) -> None:
        """Run the model until it ends or a hook ends the pass; then remove the hooks."""
        ids = ids.to(self._editable.device)
        with self._editable.compute_precision(), removing(handles), suppress(_EndOfSegment):
            self._editable.model(input_ids=ids, use_cache=False, **(packing or {}))

    def forward(self, inputs: SegmentInputs, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of layers of the segment; gradients flow.

        Blocks above the highest of the layers are not run.
        """
        states, hidden = {}, inputs.hidden
        blocks = self._editable.blocks[self.first : max(layers) + 1]
        with self._editable.compute_precision():
            for i, (block, args) in enumerate(zip(blocks, inputs.args, strict=False), self.first):
                output = block(hidden, *args.positional, **args.keyword)
                self._returns_tuple, hidden = isinstance(output, tuple), hidden_state(output)
                if i in layers:
                    states[i] = hidden
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The logits `[n, vocabulary]` of outputs `[n, hidden]` of the last block; gradients flow.

        The model itself computes them, whatever it does behind its blocks: it is run on as many
        tokens, and its blocks pass the states on.
        """
        parts = []
        for part in torch.split(states, LOGIT_POSITIONS):
            ids = torch.zeros(1, len(part), dtype=torch.long, device=self._editable.device)
            with self._editable.compute_precision(), self._passing_on(part[None]):
                parts.append(self._editable.model(input_ids=ids, use_cache=False).logits[0])
        return torch.cat(parts)

    @contextmanager
    def _passing_on(self, states: torch.Tensor) -> Iterator[None]:
        """Inside the context the blocks return states `[1, n, hidden]` and do nothing else."""
        output = (states,) if self._returns_tuple else states
        blocks = self._editable.blocks
        # An instance's own `forward`, which libraries such as accelerate set too.
        own = [vars(block).get("forward") for block in blocks]
        for block in blocks:
            block.forward = lambda *_, **__: output
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    @torch.no_grad()
    def check(self, ids: torch.Tensor) -> None:
        """Compare the segment with the whole model on token ids `[rows, tokens]`.

        Running the blocks alone is correct only if the hidden state is all that one block passes
        to the next, and if their other arguments do not depend on what an edit changes. The input
        of the segment is perturbed by noise of its own scale, and both ways must end in the same
        states. Other tokens run in between, so that state kept inside the model would show.

        Raises:
            ModelError: the outputs differ, or the states are not `[rows, tokens, hidden]`.
        """
        inputs = self.capture_inputs(ids)
        if inputs.hidden.dim() != 3 or inputs.hidden.shape[:2] != ids.shape:
            raise self._unsupported(f"its hidden states are {list(inputs.hidden.shape)}")
        noise = torch.randn(inputs.hidden.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(inputs.hidden) * inputs.hidden.std()
        perturbed = inputs.hidden + noise
        clean, whole = self._output_for(ids, inputs.hidden), self._output_for(ids, perturbed)
        self.capture_inputs(ids.flip(1))
        alone = self.forward(replace(inputs, hidden=perturbed), (self.last,))[self.last]
        # Bit-identical as a rule. Kernels that add up in a varying order, as some do on GPUs, may
        # differ by rounding: by a small fraction of what the perturbation changed.
        error, change = (alone - whole).float().norm(), (whole - clean).float().norm()
        rounding = torch.finfo(whole.dtype).eps ** 0.5
        if not torch.equal(alone, whole) and not error <= rounding * change:
            raise self._unsupported("its blocks pass on more than the hidden state")

    def _output_for(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The segment's output in a run of the whole model with another segment input."""
        with (
            edit_inputs(self._editable, self.first, lambda _: hidden),
            record_activations(self._editable, [self.last]) as states,
        ):
            self._forward_model(ids)
        return states[self.last]

    def _unsupported(self, reason: str) -> ModelError:
        layers = f"layers {self.first} to {self.last}"
        message = f"{self._editable.name} cannot be edited: {reason} ({layers})."
        hint = "This architecture is not supported."
        return ModelError(message, hint, code="architecture-unsupported")
