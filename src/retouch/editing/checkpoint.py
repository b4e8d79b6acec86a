"""The state of a game on disk: one safetensors file, replaced in one step."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save, save_file

from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError
from retouch.editing.discriminator import Jury
from retouch.editing.trainer import Trainer

NAME = "game.safetensors"


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write the state after a round.

    Raises:
        RunError: the disk is full or the folder cannot be written; the last checkpoint stays whole.
    """
    tensors, numbers = trainer.state()
    atomic_write(folder / NAME, save(tensors, numbers))


def load_checkpoint(trainer: Trainer, folder: Path) -> bool:
    """Go back to the last round written, if there is one.

    Raises:
        RunError: the file is broken, or belongs to another edit.
    """
    file = folder / NAME
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            trainer.restore(tensors, opened.metadata())
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The checkpoint {file} cannot be used: {error}", "Remove it to start the game anew."
        ) from error
    return True


def save_jury(jury: Jury, folder: Path) -> None:
    """Write the last discriminators, one file, members named by their tap."""
    tensors = {
        f"{tap}.{name}": value.contiguous()
        for tap, member in jury.members.items()
        for name, value in member.state_dict().items()
    }
    save_file(tensors, folder / "discriminators.safetensors")
