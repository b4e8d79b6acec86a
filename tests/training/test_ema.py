from __future__ import annotations

import torch

from retouch.training.ema import EMA


def test_the_average_is_applied_inside_the_context() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ema = EMA({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    ema.update()
    with ema.applied():
        assert weight.tolist() == [0.5, 0.5]
    assert weight.tolist() == [1.0, 1.0]
