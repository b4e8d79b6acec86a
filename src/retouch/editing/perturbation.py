"""The generator's second opponent: the worst push of the states that the segment starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from retouch.models.segment import Caught

Loss = Callable[[Caught], torch.Tensor]


def worst_push(caught: Caught, loss: Loss, radius: float, steps: int) -> Caught:
    r"""The segment's input, pushed within a ball to where the adapter does worst.

    $$\delta = \arg\max_{\lVert \delta_t \rVert \le \rho \lVert h_t \rVert} L(h + \delta)$$

    by `steps` normalised gradient steps of size $1.5 \rho \lVert h_t \rVert / K$ from 0, projected
    back onto the ball of each position. Latent adversarial training (Casper et al. 2024, arXiv
    2403.05030; Sheshadri et al. 2024, arXiv 2407.15549).

    Args:
        caught: the segment's input, `[rows, tokens, hidden]`.
        loss: of the adapter, for an input; weights get no gradient from here.
        radius: $\rho$, as a share of each state's norm.
        steps: $K$.
    """
    room = radius * caught.hidden.norm(dim=-1, keepdim=True)
    push = torch.zeros_like(caught.hidden)
    for _ in range(steps):
        push.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(replace(caught, hidden=caught.hidden + push)), push)
        with torch.no_grad():
            slope = slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            push = push + 1.5 * room / steps * slope
            push = push * (room / push.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return replace(caught, hidden=caught.hidden + push.detach())
