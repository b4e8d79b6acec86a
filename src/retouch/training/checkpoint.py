"""The training state on disk: one safetensors file, replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError

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


def save_checkpoint(state: TrainingState, folder: Path) -> None:
    """Write the state after a round.

    Raises:
        RunError: the disk is full or the folder cannot be written; the last checkpoint stays.
    """
    tensors = {name: value.contiguous().clone() for name, value in state.tensors.items()}
    atomic_write(folder / FILE, save(tensors, dict(state.numbers)))


def load_checkpoint(folder: Path) -> TrainingState | None:
    """The state after the last round that was written; None before the first.

    Raises:
        RunError: the file is broken.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return TrainingState(tensors, opened.metadata())
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise broken_checkpoint(folder, error) from error


def broken_checkpoint(folder: Path, error: Exception) -> RunError:
    """The error for a checkpoint that cannot be used."""
    return RunError(
        f"The checkpoint {folder / FILE} cannot be used: {error}",
        "Remove it to restart the training.",
        code="checkpoint-broken",
    )


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
