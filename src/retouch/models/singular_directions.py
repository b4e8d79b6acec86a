r"""The leading singular directions of each layer's LoRA update $BA$, and how to remove them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

Weights = Mapping[str, torch.Tensor]
"""LoRA's A `[r, in]` and B `[out, r]` matrices by PEFT's names."""


def lora_pairs(weights: Weights) -> Iterator[tuple[str, str]]:
    """The names of the A and the B matrix of each layer."""
    for name in weights:
        if ".lora_A." in name:
            yield name, name.replace(".lora_A.", ".lora_B.")


@torch.no_grad()
def leading_directions(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """The left singular vectors `[out, count]` of the largest singular values of $BA$, float32."""
    q_out, r_out = torch.linalg.qr(b.float())
    r_in = torch.linalg.qr(a.float().T, mode="r").R
    u, _, _ = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    found: torch.Tensor = q_out @ u[:, :count]
    return found


@contextmanager
def stripped(weights: Weights, count: int) -> Iterator[None]:
    r"""Remove the leading singular directions of each layer's update inside the context.

    $$BA - \sum_{i \le k} \sigma_i u_i v_i^\top = (I - U_k U_k^\top) B A$$

    On exit the weights are restored bit for bit.
    """
    kept: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for a_name, b_name in lora_pairs(weights):
            b = weights[b_name]
            directions = leading_directions(weights[a_name], b, count)
            kept[b_name] = b.detach().clone()
            b.copy_(b.float() - directions @ (directions.T @ b.float()))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, original in kept.items():
                weights[name].copy_(original)
