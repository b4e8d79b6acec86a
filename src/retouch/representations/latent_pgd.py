"""Worst-case perturbations of hidden states: projected gradient ascent in the latent space."""

from __future__ import annotations

from collections.abc import Callable

import torch

Objective = Callable[[torch.Tensor], torch.Tensor]


def latent_pgd(
    hidden: torch.Tensor,
    objective: Objective,
    epsilon: float,
    steps: int,
    *,
    step_size: float = 1.5,
    mask: torch.Tensor | None = None,
    keep_best: bool = False,
) -> torch.Tensor:
    r"""The perturbation within a ball that maximises an objective.

    $$\delta = \arg\max_{\lVert \delta_t \rVert \le \epsilon \lVert h_t \rVert} L(h + \delta)$$

    by `steps` gradient steps from 0, normalised at each position, of size
    $s\,\epsilon \lVert h_t \rVert / K$, projected onto the ball of each position (PGD, Madry et
    al. 2018, arXiv 1706.06083; in the latent space, Casper et al. 2024, arXiv 2403.05030;
    Sheshadri et al. 2024, arXiv 2407.15549).

    Args:
        hidden: $h$, `[rows, tokens, hidden]`.
        objective: $L$ of perturbed states: a scalar, or with `keep_best` a value for each row.
            The weights get no gradient.
        epsilon: $\epsilon$, as a fraction of each state's norm.
        steps: $K$.
        step_size: $s$.
        mask: `[rows, tokens]`, the positions that may be perturbed (default: all).
        keep_best: return each row's best perturbation of all that were tried, not the last one.

    Returns:
        $\delta$, `[rows, tokens, hidden]`, detached.
    """
    hidden = hidden.detach()
    radius = epsilon * hidden.float().norm(dim=-1, keepdim=True)
    if mask is not None:
        radius = radius * mask[..., None].to(radius.device)
    delta = torch.zeros_like(hidden, dtype=torch.float32)
    best, best_value = delta, None
    for step in range(steps + keep_best):
        leaf = delta.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(hidden + leaf.to(hidden.dtype))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if keep_best:
            value = value.detach()
            if best_value is None:
                best_value = value
            better = value > best_value
            best_value = torch.where(better, value, best_value)
            best = torch.where(better[:, None, None], delta, best)
        if step < steps:
            direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            delta = delta + step_size * radius / steps * direction
            norm = delta.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            delta = delta * (radius / norm).clamp_max(1.0)
    return best if keep_best else delta.detach()
