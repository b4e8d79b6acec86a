from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retouch.core.errors import ConfigError, ModelError
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.training.setup import set_up_training
from helpers.tiny_edit import run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_model, tiny_tokenizer

IDS = torch.arange(10, 30).reshape(2, 10)
BLOCK = 37_120  # bytes of a block of the tiny model; all else takes 25 KiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deep")
    tiny_model(num_hidden_layers=12).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def blocks_here(editable: EditableModel) -> list[int]:
    return [
        i
        for i, block in enumerate(editable.blocks)
        if all(p.device.type != "meta" for p in block.parameters())
    ]


def test_a_model_twice_the_memory_is_edited_as_it_would_be_whole(folder: Path) -> None:
    config = settings(layers=(4, 5), read_layers=(5,), at_once=1)
    whole = load(str(folder))
    play(whole, config)
    weights = sum(p.numel() * 4 for p in whole.model.parameters())
    tight = load(str(folder), device_memory=weights // 2)
    assert blocks_here(tight) == []
    play(tight, config)
    assert {4, 5} <= set(blocks_here(tight)) < set(range(12))
    assert tight.offload_plan is not None
    assert tight.offload_plan.weights <= weights // 2
    ours, theirs = adapters.parameters(tight), adapters.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(tight.model(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)


def test_an_adapter_of_a_streamed_model_is_saved_and_read(folder: Path, tmp_path: Path) -> None:
    tight = load(str(folder), device_memory=6 * BLOCK)
    adapters.attach(tight, [3], (), 2, 4.0, 0)
    with torch.no_grad():
        for parameter in adapters.parameters(tight).values():
            parameter.add_(0.1)
    adapters.save(tight, tmp_path / "adapter")
    edited = tight.model(input_ids=IDS).logits
    again = load(str(folder), adapter=tmp_path / "adapter")
    assert torch.equal(again.model(input_ids=IDS).logits, edited)
    streamed = load(str(folder), adapter=tmp_path / "adapter", device_memory=6 * BLOCK)
    assert torch.equal(streamed.model(input_ids=IDS).logits, edited)
    assert 3 in blocks_here(streamed)
    with pytest.raises(ModelError, match="without --device-memory"):
        adapters.merged(tight)


def test_within_a_limit_fewer_rows_run_at_once(folder: Path) -> None:
    config = settings(layers=(4, 5), read_layers=(5,))
    whole, tight = load(str(folder)), load(str(folder), device_memory=7 * BLOCK)
    assert (
        set_up_training(whole, tiny_concept(), config).trainer.dataset.at_once
        == config.train.batch_size
    )
    assert (
        set_up_training(tight, tiny_concept(), config).trainer.dataset.at_once
        < config.train.batch_size
    )


def test_a_model_that_fits_is_loaded_whole(folder: Path) -> None:
    editable = load(str(folder), device_memory=10**8)
    assert blocks_here(editable) == list(range(12))
    assert editable.free_bytes is not None
    assert editable.free_bytes > 9 * 10**7


def test_too_little_memory_says_how_much_is_needed(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"9.8 KiB is too little.*at least 102 KiB"):
        load(str(folder), device_memory=10_000)
    editable = load(str(folder), device_memory=6 * BLOCK)
    with pytest.raises(ModelError, match=r"9 blocks that are trained.*fewer blocks"):
        set_up_training(editable, tiny_concept(), settings(layers=(2, 10), read_layers=(10,)))


def test_options_that_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--quantize"):
        load(str(folder), device_memory=10**8, quantize="4bit")
    with pytest.raises(ConfigError, match=r"`--shard`.*--quantize.*Leave one"):
        load(str(folder), shard=True, quantize="4bit")
    with pytest.raises(ConfigError, match="one alone"):
        load(str(folder), shard=True)
