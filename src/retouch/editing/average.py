"""The moving average of the adapter's weights: the game cycles, its average does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class MovingAverage:
    r"""$\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$, started from the first weights."""

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.values = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        for name, value in self.values.items():
            value.mul_(self._decay).add_(self._weights[name], alpha=1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        put(self._weights, self.values)
        try:
            yield
        finally:
            put(self._weights, own)


@torch.no_grad()
def put(weights: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the weights of the same names."""
    for name, parameter in weights.items():
        parameter.copy_(values[name])
