"""Representation discriminators: one for each layer, classifying states as target or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from retouch.core.config import DiscriminatorConfig
from retouch.representations.losses import (
    Normalizer,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    gradient_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    wasserstein_loss,
)

States = dict[int, torch.Tensor]
"""States `[n, hidden]` by layer."""


class Discriminator(nn.Module):
    """Standardised states `[n, hidden]` to the log-odds `[n]` that they are target states.

    Linear with `hidden_size` 0, otherwise an MLP with one hidden layer.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, input_size: int, hidden_size: int, seed: int, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(input_size))
        self.register_buffer("scale", torch.ones(input_size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(input_size, hidden_size or 1)]
            if hidden_size:
                layers += [nn.GELU(), nn.Linear(hidden_size, 1)]
            if spectral_norm:
                normed = nn.utils.parametrizations.spectral_norm
                layers = [normed(one) if isinstance(one, nn.Linear) else one for one in layers]
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

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """The inputs `[n, size]` of the last linear layer, for states `[n, hidden]`."""
        out: torch.Tensor = self.body[:-1](self.standardised(states))
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
        self._config, self._seed = config, seed
        self.by_layer = {
            layer: Discriminator(
                input_size, config.hidden_size, seed * 1009 + layer, config.spectral_norm
            )
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
        generator = torch.Generator().manual_seed(self._seed)
        for _ in range(steps):
            losses = []
            for layer, one in self.by_layer.items():
                losses.append(self._loss(one, data[layer], len(target[layer]), generator))
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self._requires_grad(False)

    def _loss(
        self, one: Discriminator, states: torch.Tensor, count: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Of standardised states `[n, hidden]`, the first `count` of which are target states."""
        config, size = self._config, self._config.batch_size
        if size:
            others = torch.randint(count, len(states), (size,), generator=generator)
            chosen = torch.cat([torch.randint(count, (size,), generator=generator), others])
            states, count = states[chosen.to(states.device)], size
        if config.gradient_penalty:
            states = states.detach().requires_grad_()
        logits = one.body(states)[:, 0]
        target, nontarget = logits[:count], logits[count:]
        if config.objective in ("standard", "feature-matching"):
            loss = discriminator_loss(target, nontarget, config.label_smoothing)
        elif config.objective == "wasserstein":
            loss = nontarget.mean() - target.mean()
        else:
            paired = torch.randint(count, (len(nontarget),), generator=generator)
            loss = relativistic_discriminator_loss(target[paired.to(target.device)], nontarget)
        if config.gradient_penalty:
            penalty = gradient_penalty(logits, states)
            loss = loss + 0.5 * config.gradient_penalty * penalty
        return loss

    def generator_loss(
        self,
        layer: int,
        states: torch.Tensor,
        reference: torch.Tensor | None,
        normalizer: Normalizer,
    ) -> torch.Tensor:
        """The generator's adversarial loss at a layer.

        Args:
            layer: the layer.
            states: `[n, hidden]`, with gradients.
            reference: `[n, hidden]`, of the target counterparts; None without pairs.
            normalizer: the divisor of a sum over the states.
        """
        one, objective = self.by_layer[layer], self._config.objective
        if objective == "standard" or reference is None:
            return generator_loss(one(states), normalizer)
        if objective == "feature-matching":
            return feature_matching_loss(one.features(states), one.features(reference))
        loss = relativistic_generator_loss if objective == "relativistic" else wasserstein_loss
        return loss(one(states), one(reference), normalizer)

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
