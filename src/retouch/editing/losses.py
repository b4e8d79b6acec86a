"""The losses of the game, as pure functions.

Each is a sum over positions divided by a size. Where a batch is cut in pieces, be it that memory is
short or that several processes share it, the size of the whole batch is given: then the pieces'
losses add up to the batch's, and so do their gradients.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

Size = float | torch.Tensor


def fooling_loss(logits: torch.Tensor, size: Size | None = None) -> torch.Tensor:
    r"""The generator's adversarial loss: the edited states should be read as wanted ones.

    $$L_{adv} = -\frac1n \sum_i \log \sigma(D(h_i))$$

    The generator's side of ARE's objective (Zhang et al. 2024) in the non-saturating
    form of Goodfellow et al. 2014.

    Args:
        logits: `[n]`, the discriminator's log-odds that a state is a wanted one.
        size: what the sum is divided by; none given: $n$.
    """
    return F.softplus(-logits).sum() / (len(logits) if size is None else size)


def discrimination_loss(
    wanted: torch.Tensor, unwanted: torch.Tensor, smoothing: float
) -> torch.Tensor:
    r"""The discriminator's loss, each class with half the weight, labels smoothed by `s`.

    $$L_D = \tfrac12 \, CE(\sigma(D(h^+)), 1 - s) + \tfrac12 \, CE(\sigma(D(h^-)), s)$$

    Args:
        wanted: `[n]` log-odds on wanted states.
        unwanted: `[m]` log-odds on the others.
        smoothing: `s`, below 0.5.
    """
    up = torch.full_like(wanted, 1 - smoothing)
    down = torch.full_like(unwanted, smoothing)
    return 0.5 * F.binary_cross_entropy_with_logits(
        wanted, up
    ) + 0.5 * F.binary_cross_entropy_with_logits(unwanted, down)


def confusion_loss(logits: torch.Tensor, size: Size | None = None) -> torch.Tensor:
    r"""The generator's loss where two groups should look alike: the discriminator should guess.

    $$L_{adv} = -\frac1n \sum_i \tfrac12 \log \sigma(D(h_i)) + \tfrac12 \log \sigma(-D(h_i))$$

    Domain confusion (Tzeng et al. 2015, arXiv 1510.02192, equation 4).

    Args:
        logits: `[n]`, the discriminator's log-odds that a state is of the first group.
        size: what the sum is divided by; none given: $n$.
    """
    both = F.softplus(-logits) + F.softplus(logits)
    return 0.5 * both.sum() / (len(logits) if size is None else size)


def supervised_loss(
    logits: torch.Tensor, told: torch.Tensor, weights: torch.Tensor, size: Size | None = None
) -> torch.Tensor:
    r"""Weighted cross-entropy of the wanted replies, nats a token.

    $$L = -\frac{\sum_t w_t \log p(y_t | x, y_{<t})}{\sum_t w_t}$$

    Args:
        logits: `[n, vocabulary]` at the positions that predict a reply token.
        told: `[n]` those tokens.
        weights: `[n]`.
        size: what the sum is divided by; none given: $\sum_t w_t$.
    """
    losses = F.cross_entropy(logits.float(), told, reduction="none")
    return (losses * weights).sum() / (weights.sum() if size is None else size)


def matching_loss(
    states: torch.Tensor,
    wanted: torch.Tensor,
    weights: torch.Tensor | None = None,
    size: Size | None = None,
) -> torch.Tensor:
    r"""Squared distance of states to the wanted ones, in units of the wanted ones' mean square.

    $$L = \frac{\sum_i w_i \lVert h_i - h_i^* \rVert^2}{\sum_i w_i \lVert h_i^* \rVert^2}$$

    Used both ways: to pull an unwanted run to its wanted twin, and to hold the retain set at the
    base model's states. In single precision, whatever the states are in.

    Args:
        states: `[n, hidden]`, with gradients.
        wanted: `[n, hidden]`, constant.
        weights: `[n]`; none given: all the same.
        size: what the sum is divided by; none given: `matching_size` of these states.
    """
    far = (states.float() - wanted.float()).pow(2).sum(-1)
    if weights is not None:
        far = far * weights
    return far.sum() / (matching_size(wanted, weights) if size is None else size)


def matching_size(wanted: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    r"""$\sum_i w_i \lVert h_i^* \rVert^2$ of states `[n, hidden]`, a scalar, never quite 0."""
    size = wanted.float().pow(2).sum(-1)
    return (size if weights is None else size * weights).sum().clamp_min(1e-12)
