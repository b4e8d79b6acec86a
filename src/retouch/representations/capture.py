"""Hidden states by hook, as a context manager that always lets go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from retouch.models.load import LoadedModel


@contextmanager
def record(loaded: LoadedModel, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, every forward pass leaves the blocks' outputs `[rows, tokens, hidden]` in the dict.

    By hook and not through `output_hidden_states`, whose last entry is after the final norm.
    """
    states: dict[int, torch.Tensor] = {}
    blocks, handles = loaded.blocks, []

    def keep(layer: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            states[layer] = (out[0] if isinstance(out, tuple) else out).detach()

        return hook

    try:
        for layer in layers:
            handles.append(blocks[layer].register_forward_hook(keep(layer)))
        yield states
    finally:
        for handle in handles:
            handle.remove()
