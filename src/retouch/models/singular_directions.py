r"""The singular value decomposition of each layer's LoRA update $BA$.

The decomposition is written back into the factors: the rows of $A$ become orthonormal but for one
factor, in descending order of the singular values, which $B$ takes. The update stays the same.
"""

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
def rotate(weights: Weights, *others: Weights) -> None:
    """Write the decomposition into the factors, in place.

    Args:
        weights: the factors.
        others: further factors of the same layers, such as averages of them over time, which get
            the same change of basis; their updates stay the same too.
    """
    for a_name, b_name in lora_pairs(weights):
        a, b = weights[a_name].float(), weights[b_name].float()
        _, r_out = torch.linalg.qr(b)
        _, r_in = torch.linalg.qr(a.T)
        _, _, v = torch.linalg.svd(r_out @ r_in.T)  # of the update in its row space
        size = a.pow(2).mean().sqrt() * a.shape[1] ** 0.5  # the mean norm of a row of A
        # A = R_in^T Q_in^T, so that the new rows, v Q_in^T, are M A with this M.
        change = size * torch.linalg.solve_triangular(r_in.T, v, upper=False, left=False)
        inverse = r_in.T @ v.T / size
        for one in (weights, *others):
            one[a_name].copy_(change @ one[a_name].float())
            one[b_name].copy_(one[b_name].float() @ inverse)


@contextmanager
def stripped(weights: Weights, directions: int) -> Iterator[None]:
    r"""Remove the leading directions of rotated factors inside the context.

    The update is $BA - \sum_{i \le k} \sigma_i u_i v_i^\top$. The factors are restored on exit,
    and a gradient that they got inside is 0 for what was removed.
    """
    kept = {b: weights[b][:, :directions].detach().clone() for _, b in lora_pairs(weights)}
    try:
        with torch.no_grad():
            for name in kept:
                weights[name][:, :directions] = 0.0
        yield
    finally:
        with torch.no_grad():
            for name, columns in kept.items():
                weights[name][:, :directions] = columns
                gradient = weights[name].grad
                if gradient is not None:
                    gradient[:, :directions] = 0.0
