"""Optimizers as tensors by name, and back: what a checkpoint of the game is made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors whose names begin so, without that beginning."""
    return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimizer remembers, under `optimizer/NAME/`."""
    return {
        f"optimizer/{name}/{i}/{key}": value
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Let an optimizer remember what `optimizer_tensors` gave under the same name."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in under(f"optimizer/{name}/", tensors).items():
        number, field = key.split("/")
        state.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
