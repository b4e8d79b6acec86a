"""The losses of the game, as pure functions."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def fooling_loss(logits: torch.Tensor) -> torch.Tensor:
    r"""The generator's adversarial loss: the edited states should be read as wanted ones.

    $$L_{adv} = -\frac1n \sum_i \log \sigma(D(h_i))$$

    The generator's side of ARE's objective (Zhang et al. 2024) in the non-saturating
    form of Goodfellow et al. 2014.

    Args:
        logits: `[n]`, the discriminator's log-odds that a state is a wanted one.
    """
    return F.softplus(-logits).mean()


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


def matching_loss(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    r"""Squared distance of states to the wanted ones, in units of the wanted ones' mean square.

    $$L = \frac{\sum_i \lVert h_i - h_i^* \rVert^2}{\sum_i \lVert h_i^* \rVert^2}$$

    Used both ways: to pull an unwanted run to its wanted twin, and to hold the retain set at the
    base model's states.

    Args:
        states: `[n, hidden]`, with gradients.
        wanted: `[n, hidden]`, constant.
    """
    return (states - wanted).pow(2).sum() / wanted.pow(2).sum().clamp_min(1e-12)
