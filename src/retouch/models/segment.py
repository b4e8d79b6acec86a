"""Run only the blocks between the first adapted and the last tapped one, from cached inputs.

Below the first adapter nothing ever changes, and above the last tap nothing is read: the input of
the first adapted block is computed once for each batch and kept, with all else that the segment's
blocks are called with, as calibration in quantisation does. Training then runs the segment alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from retouch.core.errors import ModelError
from retouch.models.load import LoadedModel


@dataclass(frozen=True)
class Call:
    """What a block is called with besides its input.

    Attributes:
        rest: the other positional arguments.
        named: the keyword arguments: masks, position embeddings and the like.
    """

    rest: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Caught:
    """What a segment was called with, for one batch.

    Attributes:
        hidden: the input of its first block, `[rows, tokens, hidden]`.
        calls: block by block what came with the input. Blocks of one model differ in it: some look
            at all tokens and some at the nearest ones, and each kind has its own mask.
    """

    hidden: torch.Tensor
    calls: tuple[Call, ...]


_HIDDEN = "hidden_states"  # what the library calls a block's input where it is given by name


class _Reached(Exception):
    """The forward pass has come to the end of the segment; nothing above has to run."""


class Segment:
    """The blocks `first` to `last` (both included, 0-based) of a model."""

    def __init__(self, loaded: LoadedModel, first: int, last: int) -> None:
        self._loaded, self.first, self.last = loaded, first, last

    @torch.no_grad()
    def catch(self, ids: torch.Tensor) -> Caught:
        """The segment's input for token ids `[rows, tokens]`, padded on the right.

        No attention mask is needed: in a causal decoder no token sees the padding after it.
        """
        hidden: list[torch.Tensor] = []
        calls: list[Call] = []

        def keep(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            given = args[0] if args else named.pop(_HIDDEN)
            if not calls:
                hidden.append(given.detach().clone())
            calls.append(Call(args[1:], named))
            if len(calls) == self.last - self.first + 1:
                raise _Reached

        blocks = self._loaded.blocks[self.first : self.last + 1]
        # In front of other hooks, such as those that bring a block's weights together: what they
        # began would be left undone.
        handles = [
            block.register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
            for block in blocks
        ]
        self._pass(ids, handles)
        return Caught(hidden[0], tuple(calls))

    @torch.no_grad()
    def read(self, ids: torch.Tensor, taps: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs of tapped blocks for ids that are run once: `run(catch(ids), taps)`.

        In one pass, which ends after the segment.
        """
        states: dict[int, torch.Tensor] = {}

        def keep(tap: int) -> Any:
            def hook(_: Any, __: Any, out: Any) -> None:
                states[tap] = _state(out)

            return hook

        def stop(*_: Any) -> None:
            raise _Reached

        blocks = self._loaded.blocks
        handles = [blocks[tap].register_forward_hook(keep(tap)) for tap in taps]
        for block in blocks[self.last + 1 : self.last + 2]:
            handles.append(block.register_forward_pre_hook(stop, prepend=True))
        self._pass(ids, handles)
        return states

    def _pass(self, ids: torch.Tensor, handles: Sequence[RemovableHandle]) -> None:
        """Run the whole model, up to where a hook says that it is enough; then let go of hooks."""
        try:
            self._loaded.model(input_ids=ids.to(self._loaded.device), use_cache=False)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def run(self, caught: Caught, taps: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of the tapped blocks; gradients flow."""
        states, hidden = {}, caught.hidden
        blocks = self._loaded.blocks[self.first : self.last + 1]
        for i, (block, call) in enumerate(zip(blocks, caught.calls, strict=True), self.first):
            hidden = _state(block(hidden, *call.rest, **call.named))
            if i in taps:
                states[i] = hidden
        return states

    @torch.no_grad()
    def check(self, ids: torch.Tensor) -> None:
        """Hold the segment against the whole model, on token ids `[rows, tokens]`.

        Running the blocks alone is right only if the hidden state is all that one hands to the
        next, and if what else they are called with depends on nothing that an edit changes. So the
        segment's input is pushed by noise of its own size, and the push has to end in the same
        states both ways. Other tokens run in between, lest the model remember what it should be
        given.

        Raises:
            ModelError: it does not, or the states are not `[rows, tokens, hidden]`.
        """
        caught = self.catch(ids)
        if caught.hidden.dim() != 3 or caught.hidden.shape[:2] != ids.shape:
            raise self._unfit(f"its states are {list(caught.hidden.shape)}")
        noise = torch.randn(caught.hidden.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(caught.hidden) * caught.hidden.std()
        pushed = caught.hidden + noise
        calm, whole = self._through(ids, caught.hidden), self._through(ids, pushed)
        self.catch(ids.flip(1))
        alone = self.run(replace(caught, hidden=pushed), (self.last,))[self.last]
        # The same bits, as a rule. What differs may do so by the rounding of kernels that add up in
        # another order every time, as some do on GPUs: by a small share of what the push changed.
        far, moved = (alone - whole).float().norm(), (whole - calm).float().norm()
        rounding = torch.finfo(whole.dtype).eps ** 0.5
        if not torch.equal(alone, whole) and not far <= rounding * moved:
            raise self._unfit("something else than the hidden state flows between its blocks")

    def _through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The output of the last block in a run of the whole model with another segment input."""
        found: list[torch.Tensor] = []

        def put(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return ((hidden, *args[1:]), named) if args else (args, {**named, _HIDDEN: hidden})

        def keep(_: Any, __: Any, out: Any) -> None:
            found.append(_state(out))

        blocks = self._loaded.blocks
        first = blocks[self.first].register_forward_pre_hook(put, with_kwargs=True)
        self._pass(ids, [first, blocks[self.last].register_forward_hook(keep)])
        return found[0]

    def _unfit(self, why: str) -> ModelError:
        return ModelError(
            f"{self._loaded.name} cannot be edited: {why} (blocks {self.first} to {self.last}).",
            "This architecture is not supported yet.",
        )


def _state(out: Any) -> Any:
    """The hidden state in what a block puts out."""
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def replaced(
    loaded: LoadedModel, layer: int, rows: torch.Tensor, at: torch.Tensor, states: torch.Tensor
) -> Iterator[None]:
    """Inside, block `layer` puts out `states` `[n, hidden]` at the positions `(rows, at)` `[n]`.

    Calls on a single new token (generation with a cache, after the prompt) are left alone.
    """

    def patch(_: Any, __: Any, out: Any) -> Any:
        hidden = _state(out)
        if hidden.shape[1] == 1:
            return out
        hidden = hidden.clone()
        hidden[rows, at] = states.to(hidden.dtype)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = loaded.blocks[layer].register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()
