"""Exponential moving average of the adapter weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from retouch.task.best_checkpoint import copy_into


class EMA:
    r"""$\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$, started from the first weights.

    The weights oscillate in adversarial training; their average does not.

    Attributes:
        values: the averaged weights by name.
    """

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.values = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present weights."""
        for name, value in self.values.items():
            value.mul_(self._decay).add_(self._weights[name], alpha=1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the averaged weights inside the context."""
        original = {name: p.detach().clone() for name, p in self._weights.items()}
        copy_into(self._weights, self.values)
        try:
            yield
        finally:
            copy_into(self._weights, original)
