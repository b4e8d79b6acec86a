"""Representation discriminators: one for each layer, classifying states as target or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from retouch.core.config import DiscriminatorConfig
from retouch.representations.losses import discriminator_loss

States = dict[int, torch.Tensor]
"""States `[n, hidden]` by layer."""


class Discriminator(nn.Module):
    """Standardised states `[n, hidden]` to the log-odds `[n]` that they are target states.

    Linear with `hidden_size` 0, otherwise an MLP with one hidden layer.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, input_size: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(input_size))
        self.register_buffer("scale", torch.ones(input_size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(input_size, hidden_size or 1)]
            if hidden_size:
                layers += [nn.GELU(), nn.Linear(hidden_size, 1)]
        self.body = nn.Sequential(*layers)

    def standardise(self, states: torch.Tensor) -> None:
        """Set mean and standard deviation from states `[n, hidden]`."""
        self.mean.copy_(states.mean(0))
        self.scale.copy_(states.std(0).clamp_min(1e-4))

    def standardised(self, states: torch.Tensor) -> torch.Tensor:
        """States `[n, hidden]` by the mean and the standard deviation, in float32."""
        return (states.float() - self.mean) / self.scale

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Log-odds `[n]` for states `[n, hidden]`."""
        out: torch.Tensor = self.body(self.standardised(states))[:, 0]
        return out


class Discriminators:
    """The discriminators of several layers, with one optimizer.

    Attributes:
        by_layer: the discriminator of each layer.
        optimizer: of all of them; Adam updates each weight by its own gradients alone.
    """

    def __init__(
        self, layers: tuple[int, ...], input_size: int, config: DiscriminatorConfig, seed: int
    ) -> None:
        self._label_smoothing = config.label_smoothing
        self.by_layer = {
            layer: Discriminator(input_size, config.hidden_size, seed * 1009 + layer)
            for layer in layers
        }
        weights = [weight for one in self.by_layer.values() for weight in one.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=config.learning_rate)

    def to(self, device: torch.device) -> Discriminators:
        """Move the discriminators to the states' device."""
        for discriminator in self.by_layer.values():
            discriminator.to(device)
        return self

    def standardise(self, states: Mapping[int, torch.Tensor]) -> None:
        """Set each feature scale from states `[n, hidden]` by layer."""
        for layer, discriminator in self.by_layer.items():
            discriminator.standardise(states[layer])

    def fit(
        self,
        target: Mapping[int, torch.Tensor],
        nontarget: Mapping[int, torch.Tensor],
        steps: int,
    ) -> None:
        """Train every discriminator for some steps on all states, `[n, hidden]` by layer."""
        # On a GPU a step is as long as it takes to start its kernels, so there are few of them: the
        # states are standardised once, both classes run together, and so do the updates.
        data = {
            layer: one.standardised(torch.cat([target[layer], nontarget[layer]]))
            for layer, one in self.by_layer.items()
        }
        self._requires_grad(True)
        for _ in range(steps):
            losses = []
            for layer, one in self.by_layer.items():
                logits, count = one.body(data[layer])[:, 0], len(target[layer])
                losses.append(
                    discriminator_loss(logits[:count], logits[count:], self._label_smoothing)
                )
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self._requires_grad(False)

    def _requires_grad(self, value: bool) -> None:
        for one in self.by_layer.values():
            one.requires_grad_(value)

    @torch.no_grad()
    def accuracy(
        self, target: Mapping[int, torch.Tensor], nontarget: Mapping[int, torch.Tensor]
    ) -> float:
        """Balanced accuracy, mean over the layers; 0.5 is chance."""
        parts = [
            0.5 * (one(target[layer]) > 0).float().mean()
            + 0.5 * (one(nontarget[layer]) <= 0).float().mean()
            for layer, one in self.by_layer.items()
        ]
        return float(torch.stack(parts).mean())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of all discriminators, named `LAYER.PARAMETER`."""
        return {
            f"{layer}.{name}": value.contiguous()
            for layer, one in self.by_layer.items()
            for name, value in one.state_dict().items()
        }
