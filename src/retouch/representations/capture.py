"""Hidden states by hook, as a context manager that always lets go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from retouch.models.load import LoadedModel


@contextmanager
def record(
    loaded: LoadedModel, layers: Sequence[int], *, gradients: bool = False
) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, every forward pass leaves the blocks' outputs `[rows, tokens, hidden]` in the dict.

    By hook and not through `output_hidden_states`, whose last entry is after the final norm.
    Gradients flow through what is recorded if they are asked for.
    """
    states: dict[int, torch.Tensor] = {}
    blocks, handles = loaded.blocks, []

    def keep(layer: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            found = out[0] if isinstance(out, tuple) else out
            states[layer] = found if gradients else found.detach()

        return hook

    try:
        for layer in layers:
            handles.append(blocks[layer].register_forward_hook(keep(layer)))
        yield states
    finally:
        for handle in handles:
            handle.remove()


def run_whole(
    loaded: LoadedModel, ids: torch.Tensor, layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Run the whole model on ids `[rows, tokens]`; gradients flow.

    Returns:
        The outputs `[rows, tokens, hidden]` of the blocks, and the logits `[rows, tokens,
        vocabulary]`.
    """
    with record(loaded, layers, gradients=True) as states:
        logits = loaded.model(input_ids=ids.to(loaded.device), use_cache=False).logits
    return states, logits
