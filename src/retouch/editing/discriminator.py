"""Representation discriminators: one a tapped layer, reading whether a state is a wanted one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from retouch.editing.losses import discrimination_loss


class Discriminator(nn.Module):
    """Standardised state `[n, hidden]` to the log-odds `[n]` that it is a wanted one.

    Linear with `width` 0, otherwise an MLP with one hidden layer.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, hidden: int, width: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("scale", torch.ones(hidden))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(hidden, width or 1)]
            if width:
                layers += [nn.GELU(), nn.Linear(width, 1)]
        self.body = nn.Sequential(*layers)

    def standardise(self, states: torch.Tensor) -> None:
        """Take mean and deviation from states `[n, hidden]`."""
        self.mean.copy_(states.mean(0))
        self.scale.copy_(states.std(0).clamp_min(1e-4))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Log-odds `[n]` for states `[n, hidden]`."""
        out: torch.Tensor = self.body((states.float() - self.mean) / self.scale)[:, 0]
        return out


class Jury:
    """The discriminators of all tapped layers with their optimizers."""

    def __init__(self, taps: tuple[int, ...], hidden: int, width: int, lr: float, seed: int):
        self._arguments = (taps, hidden, width, lr)
        self.members = {t: Discriminator(hidden, width, seed * 1009 + t) for t in taps}
        self.optimizers = {
            t: torch.optim.Adam(d.parameters(), lr=lr) for t, d in self.members.items()
        }

    def to(self, device: torch.device) -> Jury:
        """Move the discriminators to where the states are."""
        for member in self.members.values():
            member.to(device)
        return self

    def standardise(self, states: Mapping[int, torch.Tensor]) -> None:
        """Set each member's feature scale from states `[n, hidden]` by tap."""
        for tap, member in self.members.items():
            member.standardise(states[tap])

    def learn(
        self,
        wanted: Mapping[int, torch.Tensor],
        unwanted: Mapping[int, torch.Tensor],
        steps: int,
        smoothing: float,
    ) -> None:
        """Train every member for some steps on the whole pools, states `[n, hidden]` by tap."""
        for tap, member in self.members.items():
            for parameter in member.parameters():
                parameter.requires_grad_(True)
            for _ in range(steps):
                loss = discrimination_loss(member(wanted[tap]), member(unwanted[tap]), smoothing)
                self.optimizers[tap].zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizers[tap].step()
            for parameter in member.parameters():
                parameter.requires_grad_(False)

    @torch.no_grad()
    def accuracy(
        self, wanted: Mapping[int, torch.Tensor], unwanted: Mapping[int, torch.Tensor]
    ) -> float:
        """Balanced accuracy, mean over the taps; 0.5 is a guess."""
        parts = [
            0.5 * (member(wanted[tap]) > 0).float().mean()
            + 0.5 * (member(unwanted[tap]) <= 0).float().mean()
            for tap, member in self.members.items()
        ]
        return float(torch.stack(parts).mean())
