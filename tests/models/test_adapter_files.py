"""Adapters from elsewhere: what is refused before and after PEFT reads them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.core.run_dir import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from retouch.models import adapters
from retouch.models.load import add_adapter

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    editable = tiny_editable()
    adapters.attach(editable, [0], LoraConfig(), 0)
    adapters.save(editable, tmp_path)
    return tmp_path


def refused(folder: Path, code: str) -> str:
    """The message of the error; the model is the base afterwards."""
    editable = tiny_editable()
    with pytest.raises(ModelError) as error:
        add_adapter(editable, folder)
    assert error.value.code == code
    assert not editable.adapted
    return error.value.message


def test_an_adapter_that_was_saved_is_loaded(folder: Path) -> None:
    editable = tiny_editable()
    add_adapter(editable, folder)
    assert editable.adapted


class Attack:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_not_read(folder: Path, name: str) -> None:
    (folder / ADAPTER_WEIGHTS).unlink()
    attacked = folder / "attacked"
    (folder / name).write_bytes(pickle.dumps(Attack(attacked)))
    assert name in refused(folder, "adapter-not-safetensors")
    assert not attacked.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "PROMPT_TUNING"),
        ("megatron_core", "antigravity"),
        ("megatron_config", {"a": 1}),
        ("corda_config", {"cache_file": "/etc/passwd"}),
        ("init_lora_weights", "corda"),
        ("target_modules", "(a+)+$"),
        ("target_modules", ["(a+)+$"]),
        ("target_modules", [1]),
        ("rank_pattern", {"(a+)+$": 4}),
        ("rank_pattern", {"q_proj": 10**9}),
        ("rank_pattern", 3),
        ("r", 10**9),
        ("r", -1),
        ("r", "x"),
        ("r", True),
        ("lora_alpha", "x"),
        ("lora_dropout", float("nan")),
        ("alpha_pattern", {"q_proj": "x"}),
        ("layers_to_transform", ["x"]),
        ("bias", 3),
        ("use_dora", "x"),
        ("modules_to_save", {"(a+)+$": 1}),
        ("\u001b]0;title\u0007", "x"),
    ],
)
def test_settings_that_do_more_than_lora_are_refused(folder: Path, key: str, value: Any) -> None:
    file = folder / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    message = refused(folder, "adapter-config-invalid")
    assert "\u001b" not in message


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null"])
def test_a_broken_configuration_is_one_error(folder: Path, text: str) -> None:
    (folder / ADAPTER_CONFIG).write_text(text)
    refused(folder, "adapter-config-invalid")


@pytest.mark.parametrize("size", [0, 4, 100])
def test_weights_that_are_cut_off_are_one_error(folder: Path, size: int) -> None:
    (folder / ADAPTER_WEIGHTS).write_bytes((folder / ADAPTER_WEIGHTS).read_bytes()[:size])
    refused(folder, "adapter-mismatch")


def drop(weights: Weights) -> None:
    weights.pop(next(iter(weights)))


def add(weights: Weights) -> None:
    weights["base_model.model.more.lora_A.weight"] = torch.zeros(2)


def spoil(weights: Weights) -> None:
    next(iter(weights.values()))[0, 0] = float("nan")


def reshape(weights: Weights) -> None:
    name = next(iter(weights))
    weights[name] = weights[name][:, :-1].contiguous()


@pytest.mark.parametrize("change", [drop, add, spoil, reshape])
def test_tensors_that_do_not_fit_are_named(folder: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(folder / ADAPTER_WEIGHTS)
    change(weights)
    save_file(weights, folder / ADAPTER_WEIGHTS)
    assert "lora_" in refused(folder, "adapter-mismatch")
