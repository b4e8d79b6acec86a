"""Run only the blocks between the first adapted and the last read one, from cached inputs.

Below the first adapter nothing changes during training, and above the last block that is read
nothing is used. The input of the first block is computed once for each batch and cached, with
everything else that the segment's blocks are called with, as calibration does in quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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

    @torch.no_grad()
    def capture_inputs(self, ids: torch.Tensor) -> SegmentInputs:
        """The segment's inputs for token ids `[rows, tokens]`, padded on the right.

        No attention mask is needed: in a causal decoder no token attends to the padding after it.
        """
        hidden: list[torch.Tensor] = []
        args: list[BlockArgs] = []

        def capture(_: Any, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
            keyword = dict(keyword)
            given = positional[0] if positional else keyword.pop(HIDDEN_STATES)
            if not args:
                hidden.append(given.detach().clone())
            args.append(BlockArgs(positional[1:], keyword))
            if len(args) == self.last - self.first + 1:
                raise _EndOfSegment

        blocks = self._editable.blocks[self.first : self.last + 1]
        # Before other hooks, such as those that gather a sharded block's weights: the exception
        # would leave their work undone.
        handles = [
            block.register_forward_pre_hook(capture, with_kwargs=True, prepend=True)
            for block in blocks
        ]
        self._forward_model(ids, handles)
        return SegmentInputs(hidden[0], tuple(args))

    @torch.no_grad()
    def forward_states(self, ids: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs of layers: `forward(capture_inputs(ids), layers)` in one pass."""

        def stop(*_: Any) -> None:
            raise _EndOfSegment

        above = self._editable.blocks[self.last + 1 : self.last + 2]
        with record_activations(self._editable, layers) as states:
            handles = [block.register_forward_pre_hook(stop, prepend=True) for block in above]
            self._forward_model(ids, handles)
        return states

    def _forward_model(self, ids: torch.Tensor, handles: Sequence[RemovableHandle] = ()) -> None:
        """Run the model until it ends or a hook ends the pass; then remove the hooks."""
        with removing(handles), suppress(_EndOfSegment):
            self._editable.model(input_ids=ids.to(self._editable.device), use_cache=False)

    def forward(self, inputs: SegmentInputs, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of layers of the segment; gradients flow."""
        states, hidden = {}, inputs.hidden
        blocks = self._editable.blocks[self.first : self.last + 1]
        for i, (block, args) in enumerate(zip(blocks, inputs.args, strict=True), self.first):
            hidden = hidden_state(block(hidden, *args.positional, **args.keyword))
            if i in layers:
                states[i] = hidden
        return states

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
