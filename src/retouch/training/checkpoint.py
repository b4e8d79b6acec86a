"""The training state on disk: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from retouch.core.checkpoints import Checkpoints, head_of

FILE = "training.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next round depends on.

    Attributes:
        tensors: weights, averages and optimizer states by name.
        numbers: counters and scores, as text.
    """

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, str]


def save_checkpoint(state: TrainingState, checkpoints: Checkpoints) -> None:
    """Write the state after a round.

    Raises:
        RunError: the disk is full or the folder cannot be written; the last checkpoint stays.
    """
    tensors = {name: value.contiguous().clone() for name, value in state.tensors.items()}
    # One entry, since safetensors writes several in random order.
    metadata = {"state": json.dumps({**checkpoints.head(), "numbers": dict(state.numbers)})}
    checkpoints.write(FILE, save(tensors, metadata))


def load_checkpoint(checkpoints: Checkpoints) -> TrainingState | None:
    """The state after the last round that was written; None before the first.

    Raises:
        RunError: the file is damaged, or the settings, the data or the model have changed.
    """
    content = checkpoints.read(FILE)
    if content is None:
        return None
    try:
        return TrainingState(load(content), head_of(content)["numbers"])
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise checkpoints.broken(FILE, error) from error


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer, under `optimizer/NAME/`."""
    return {
        f"optimizer/{name}/{i}/{key}": value
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned under the same name."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in with_prefix(f"optimizer/{name}/", tensors).items():
        number, field = key.split("/")
        state.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
