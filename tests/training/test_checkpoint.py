"""The training's checkpoint: bit for bit the same, and damage of any byte is noticed."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch

from helpers.tiny_edit import build_training, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.core.checkpoints import Checkpoints, Identity
from retouch.core.errors import RunError
from retouch.training.checkpoint import FILE, TrainingState, load_checkpoint, save_checkpoint

STATE = TrainingState(
    {"weights/a": torch.tensor([[1.0, -0.0], [1e-45, float("inf")]]), "step": torch.tensor(3)},
    {"round": "2", "best_score": repr(0.1 + 0.2)},
)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, Identity({"seed": 3}, {}))


def test_a_state_is_read_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    assert load_checkpoint(checkpoints) is None
    save_checkpoint(STATE, checkpoints)
    found = load_checkpoint(checkpoints)
    assert found is not None
    assert dict(found.numbers) == dict(STATE.numbers)
    assert found.tensors.keys() == STATE.tensors.keys()
    for name, value in STATE.tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert found.tensors[name].numpy().tobytes() == value.numpy().tobytes()
    first = (checkpoints.folder / FILE).read_bytes()
    save_checkpoint(STATE, checkpoints)
    assert (checkpoints.folder / FILE).read_bytes() == first


def test_100_of_100_changed_bytes_are_noticed(checkpoints: Checkpoints) -> None:
    trainer = build_training(tiny_editable(), tiny_config({"train.rounds": 1})).trainer
    list(trainer.train())
    save_checkpoint(trainer.state(), checkpoints)
    file, rng = checkpoints.folder / FILE, random.Random(0)
    whole = file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    # Half of them in the header, which is a small part of the file.
    ends = [header] * 50 + [len(whole)] * 50
    noticed = 0
    for position in (rng.randrange(end) for end in ends):
        changed = bytearray(whole)
        changed[position] ^= rng.randrange(1, 256)
        file.write_bytes(changed)
        with pytest.raises(RunError) as error:
            load_checkpoint(checkpoints)
        assert error.value.code == "checkpoint-broken"
        assert str(file) in error.value.message
        noticed += 1
    assert noticed == 100
    file.write_bytes(whole)
    assert load_checkpoint(checkpoints) is not None


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"not a checkpoint"])
def test_another_file_is_reported(checkpoints: Checkpoints, content: bytes) -> None:
    (checkpoints.folder / FILE).write_bytes(content)
    with pytest.raises(RunError) as error:
        load_checkpoint(checkpoints)
    assert error.value.code == "checkpoint-broken"


@pytest.mark.parametrize("name", ["round", "rounds_without_improvement"])
@pytest.mark.parametrize("value", ["-1", "99"])
def test_a_counter_out_of_range_is_refused(name: str, value: str) -> None:
    trainer = build_training(tiny_editable(), tiny_config()).trainer
    state = trainer.state()
    changed = TrainingState(state.tensors, {**state.numbers, name: value})
    with pytest.raises(ValueError, match=name):
        trainer.restore(changed)
