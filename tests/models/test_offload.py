"""A model that exceeds a device memory limit is edited as if it were whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.tiny_edit import build_training, run_training, tiny_config
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig, LoraConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.load import load

IDS = torch.arange(10, 30).reshape(2, 10)
LAYER = 37_120  # bytes of a layer of the tiny model; everything else takes 25 KiB
SEGMENT = {"lora.layers_to_transform": (4, 5), "discriminator.layers": (5,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deep")
    tiny_model(num_hidden_layers=12).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def load_with_limit(folder: Path, limit: int, adapter: Path | None = None) -> EditableModel:
    return load(str(folder), LoadConfig(max_device_memory=str(limit)), adapter=adapter)


def layers_on_device(editable: EditableModel) -> list[int]:
    return [
        i
        for i, block in enumerate(editable.blocks)
        if all(p.device.type != "meta" for p in block.parameters())
    ]


def test_a_model_twice_the_limit_gets_the_same_edit_as_a_whole_one(folder: Path) -> None:
    config = tiny_config({**SEGMENT, "train.micro_batch_size": 1})
    whole = load(str(folder))
    run_training(whole, config)
    size = sum(p.numel() * 4 for p in whole.model.parameters())
    offloaded = load_with_limit(folder, size // 2)
    assert layers_on_device(offloaded) == []
    run_training(offloaded, config)
    assert {4, 5} <= set(layers_on_device(offloaded)) < set(range(12))
    plan = offloaded.offload_plan
    assert plan is not None
    assert plan.resident == set(layers_on_device(offloaded))
    assert plan.weights <= size // 2
    assert plan.free_bytes == plan.limit - plan.weights
    streamed = [i for i, size in enumerate(plan.streamed_bytes) if size]
    assert streamed == sorted(set(range(12)) - plan.resident)
    found, expected = adapters.parameters(offloaded), adapters.parameters(whole)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(offloaded.model(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)


def test_the_adapter_of_an_offloaded_model_is_saved_and_loaded(
    folder: Path, tmp_path: Path
) -> None:
    offloaded = load_with_limit(folder, 6 * LAYER)
    adapters.attach(offloaded, [3], LoraConfig(r=2, lora_alpha=4.0), 0)
    with torch.no_grad():
        for parameter in adapters.parameters(offloaded).values():
            parameter.add_(0.1)
    adapters.save(offloaded, tmp_path / "adapter")
    edited = offloaded.model(input_ids=IDS).logits
    again = load(str(folder), adapter=tmp_path / "adapter")
    assert torch.equal(again.model(input_ids=IDS).logits, edited)
    streamed = load_with_limit(folder, 6 * LAYER, tmp_path / "adapter")
    assert torch.equal(streamed.model(input_ids=IDS).logits, edited)
    assert 3 in layers_on_device(streamed)
    with pytest.raises(ModelError) as raised:
        adapters.merged(offloaded)
    assert raised.value.code == "model-offloaded"


def test_a_limit_reduces_the_micro_batch_size(folder: Path) -> None:
    config = tiny_config(SEGMENT)
    sizes = [
        build_training(editable, config).trainer.dataset.micro_batch_size
        for editable in (load(str(folder)), load_with_limit(folder, 7 * LAYER))
    ]
    assert sizes[0] == config.train.batch_size
    assert sizes[1] < config.train.batch_size


def test_a_model_within_the_limit_is_loaded_whole(folder: Path) -> None:
    editable = load_with_limit(folder, 10**8)
    assert layers_on_device(editable) == list(range(12))
    assert editable.free_bytes is not None
    assert editable.free_bytes > 9 * 10**7


def test_a_limit_that_is_too_low_is_an_error_with_the_lowest_possible(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"9.8 KiB is too low.*at least 102 KiB") as raised:
        load_with_limit(folder, 10_000)
    assert raised.value.code == "device-limit-too-low"
    editable = load_with_limit(folder, 6 * LAYER)
    wide = {"lora.layers_to_transform": (2, 10), "discriminator.layers": (10,)}
    with pytest.raises(ModelError, match=r"9 trained layers.*fewer layers") as raised:
        build_training(editable, tiny_config(wide))
    assert raised.value.code == "device-limit-too-low"


@pytest.mark.parametrize(
    "config",
    [
        LoadConfig(max_device_memory="1GiB", quantize="4bit"),
        LoadConfig(fsdp=True, quantize="4bit"),
        LoadConfig(fsdp=True, max_device_memory="1GiB"),
    ],
)
def test_ways_to_save_memory_exclude_each_other(folder: Path, config: LoadConfig) -> None:
    with pytest.raises(ConfigError, match="cannot be combined") as raised:
        load(str(folder), config)
    assert raised.value.code == "options-exclusive"
