"""Hooks on a decoder's blocks, as context managers that always remove them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

HIDDEN_STATES = "hidden_states"  # transformers' keyword for a block's input


def hidden_state(output: Any) -> torch.Tensor:
    """The hidden states `[rows, tokens, hidden]` in the output of a block."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def with_hidden_state(output: Any, hidden: torch.Tensor) -> Any:
    """The output of a block with other hidden states in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def removing(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks on exit."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_activations(
    editable: EditableModel, layers: Sequence[int], *, gradients: bool = False
) -> Iterator[dict[int, torch.Tensor]]:
    """Record the outputs `[rows, tokens, hidden]` of blocks, by layer, of the last forward pass.

    By hook and not through `output_hidden_states`, whose last entry is after the final norm. They
    are detached, unless `gradients` are to flow through them.
    """
    states: dict[int, torch.Tensor] = {}

    def record(layer: int, _: Any, __: Any, output: Any) -> None:
        found = hidden_state(output)
        states[layer] = found if gradients else found.detach()

    blocks = editable.blocks
    with removing([blocks[i].register_forward_hook(partial(record, i)) for i in layers]):
        yield states


@contextmanager
def record_inputs(
    modules: Mapping[str, torch.nn.Module],
    shape: tuple[int, ...],
    rows: torch.Tensor,
    positions: torch.Tensor,
) -> Iterator[dict[str, torch.Tensor]]:
    """Record the inputs `[n, size]` of modules at `(rows, positions)` `[n]`, by name.

    Modules whose input has not the given `shape` `[rows, tokens]` are left out, such as the experts
    of a mixture, which do not see every token.
    """
    found: dict[str, torch.Tensor] = {}

    def record(name: str, _: Any, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[:2] == shape:
            found[name] = args[0][rows, positions].detach()

    pairs = modules.items()
    with removing([one.register_forward_pre_hook(partial(record, name)) for name, one in pairs]):
        yield found


@contextmanager
def patch_activations(
    editable: EditableModel,
    layer: int,
    rows: torch.Tensor,
    positions: torch.Tensor,
    states: torch.Tensor,
) -> Iterator[None]:
    """Replace the output of a block by `states` `[n, hidden]` at `(rows, positions)` `[n]`.

    Calls with a single new token (generation with a cache, after the prompt) are not patched.
    """

    def patch(_: Any, __: Any, output: Any) -> Any:
        hidden = hidden_state(output)
        if hidden.shape[1] == 1:
            return output
        hidden = hidden.clone()
        hidden[rows, positions] = states.to(hidden.dtype)
        return with_hidden_state(output, hidden)

    with removing([editable.blocks[layer].register_forward_hook(patch)]):
        yield


@contextmanager
def edit_inputs(
    editable: EditableModel, layer: int, edit: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Apply `edit` to the hidden states `[rows, tokens, hidden]` that enter a block.

    Calls with a single new token (generation with a cache, after the prompt) are not edited.
    """

    def hook(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = args[0] if args else named[HIDDEN_STATES]
        if hidden.shape[1] == 1:
            return None
        hidden = edit(hidden)
        return ((hidden, *args[1:]), named) if args else (args, {**named, HIDDEN_STATES: hidden})

    with removing([editable.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)]):
        yield
