"""Missing, truncated and foreign files of a checkpoint are found without loading weights."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from helpers.preflight import only_error, preflight
from helpers.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from retouch.core.errors import ModelError
from retouch.models.checkpoint_files import check_folder, check_listing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def test_missing_weights_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    error = only_error(preflight(folder))
    assert error.code == "weights-missing"
    assert "model.safetensors" in error.hint


def test_pickled_weights_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = only_error(preflight(folder))
    assert error.code == "weights-pickled"
    assert "save_pretrained" in error.hint


def test_weights_under_another_name_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert only_error(preflight(folder)).code == "weights-misnamed"


def test_a_missing_or_truncated_shard_is_an_error(sharded: Path) -> None:
    assert not preflight(sharded).errors
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    whole = first.read_bytes()
    for end in (-10, 20):  # within a tensor, and within the header
        first.write_bytes(whole[:end])
        error = only_error(preflight(sharded))
        assert error.code == "weights-truncated"
        assert first.name in error.message
    first.write_bytes(whole)
    second.unlink()
    error = only_error(preflight(sharded))
    assert error.code == "weights-incomplete"
    assert f"missing {second.name}, of" in error.message


def test_an_index_with_tensors_that_its_files_lack_is_an_error(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.extra.weight"] = sorted(index["weight_map"].values())[0]
    file.write_text(json.dumps(index))
    error = only_error(preflight(sharded))
    assert error.code == "weights-corrupt"
    assert "lacks model.extra.weight" in error.message
    file.write_text("{")
    error = only_error(preflight(sharded))
    assert error.code == "weights-corrupt"
    assert "index" in error.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "weights-lfs-pointer"),
        (b"PK\x03\x04 a zip and no safetensors", "weights-corrupt"),
        (struct.pack("<Q", 2) + b"[]", "weights-corrupt"),
        (struct.pack("<Q", 32) + b'{"a": {"data_offsets": [0, 0]}}  ', "weights-corrupt"),
        (b"", "weights-corrupt"),
    ],
)
def test_a_file_that_is_not_safetensors_is_an_error(
    folder: Path, content: bytes, code: str
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert only_error(preflight(folder)).code == code


def test_weights_of_a_smaller_model_are_an_error(folder: Path, tmp_path: Path) -> None:
    tiny_model(num_hidden_layers=2).save_pretrained(tmp_path / "small")
    shutil.copy(tmp_path / "small" / "model.safetensors", folder)
    assert only_error(preflight(folder)).code == "weights-mismatch"


def test_missing_shards_are_found_in_a_hub_listing() -> None:
    parts: dict[str, int | None] = {f"model-0000{i}-of-00003.safetensors": 10 for i in (1, 2, 3)}
    parts["model.safetensors.index.json"] = 1
    assert check_listing(parts).findings[0].code == "weights-complete"
    assert check_listing(parts).size == 30
    del parts["model-00002-of-00003.safetensors"]
    (finding,) = check_listing(parts).findings
    assert finding.code == "weights-incomplete"
    assert "missing 1, of 3 files" in finding.message
    assert check_listing({"model.safetensors": 7, "consolidated.safetensors": 7}).size == 7
    with pytest.raises(ModelError) as raised:
        check_listing({"pytorch_model.bin": 3})
    assert raised.value.code == "weights-pickled"


def test_an_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (finding,) = check_folder(folder).findings
    assert finding.code == "model-is-adapter"
    assert preflight(folder).errors


def test_an_adapter_beside_the_weights_is_an_error(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (finding,) = check_folder(folder).findings
    assert (finding.level, finding.code) == ("error", "model-with-adapter")
