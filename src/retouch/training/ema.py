"""Exponential moving average of the adapter weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from retouch.task.best_checkpoint import copy_into


class EMA:
    r"""$\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$, started from the first weights.

    Adversarial training oscillates; its average does not.

    Attributes:
        values: the averaged weights by name.
    """

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.values = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        for name, value in self.values.items():
            value.mul_(self._decay).add_(self._weights[name], alpha=1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights, and its own back on exit."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        copy_into(self._weights, self.values)
        try:
            yield
        finally:
            copy_into(self._weights, own)
