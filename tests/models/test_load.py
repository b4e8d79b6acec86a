"""Models are loaded from folders, with adapters, or taken from memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from helpers.tiny_edit import build_training, tiny_config
from helpers.tiny_models import VISION, save_tiny, tiny_editable, tiny_model, tiny_tokenizer
from retouch.core.config import EditConfig, LoadConfig, LoraConfig
from retouch.core.errors import ModelError, RunError
from retouch.models import adapters
from retouch.models.gguf_header import LFS_POINTER
from retouch.models.load import POCKET, load, model_name
from retouch.preflight.check import run_preflight

IDS = torch.arange(6, 46).reshape(4, 10)
LORA = LoraConfig(r=2, lora_alpha=4.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def test_a_local_folder_is_loaded_frozen(folder: Path) -> None:
    editable = load(str(folder))
    assert editable.layout.depth == 4
    assert not any(p.requires_grad for p in editable.model.parameters())
    assert not editable.edited
    assert not editable.in_memory


def test_pocket_is_recognised_in_any_folder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "merged"
    copy.mkdir()
    (copy / "config.json").write_text((POCKET / "config.json").read_text())
    assert {model_name(str(one)) for one in ("pocket", POCKET, copy)} == {"pocket"}
    for other in (str(folder), "other/model", "", "\0"):
        assert model_name(other) == other


def test_a_missing_model_is_an_error_that_names_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.*Give `pocket`") as raised:
        load(str(tmp_path / "nowhere"))
    assert raised.value.code == "model-not-found"


def test_a_run_in_place_of_a_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        load(str(tmp_path))
    assert f"`--adapter {tmp_path}`" in raised.value.hint


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"hidden_size": "wide"}, "'hidden_size'.*expected int"),
        ({"hidden_size": 33}, "multiple"),
        ({"hidden_size": -32}, "negative"),
        ({"num_attention_heads": 0}, "zero"),
        ({"intermediate_size": 80}, "other shapes"),
    ],
)
def test_an_impossible_configuration_is_an_error_with_its_reason(
    folder: Path, value: dict[str, Any], reason: str
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | value))
    with pytest.raises(ModelError, match=reason) as raised:
        load(str(folder))
    assert raised.value.code == "model-unreadable"


def test_pickled_weights_are_rejected(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle") as raised:
        load(str(folder))
    assert raised.value.code == "weights-pickled"


def test_a_missing_device_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"nonsense.*`cpu`") as raised:
        load(str(folder), LoadConfig(device="nonsense"))
    assert raised.value.code == "device-missing"


def test_a_folder_without_an_adapter_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"adapter_config\.json") as raised:
        load(str(folder), adapter=tmp_path)
    assert raised.value.code == "adapter-missing"


def test_an_adapter_of_another_model_is_an_error(folder: Path, tmp_path: Path) -> None:
    wide = tiny_editable(hidden_size=64)
    adapters.attach(wide, [1], LORA, 0)
    adapters.save(wide, tmp_path / "wide")
    with pytest.raises(ModelError) as raised:
        load(str(folder), adapter=tmp_path / "wide")
    assert raised.value.code == "adapter-mismatch"


def test_a_saved_adapter_of_pocket_has_no_path_of_this_machine(tmp_path: Path) -> None:
    editable = load("pocket")
    adapters.attach(editable, [1], LORA, 0)
    adapters.save(editable, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "pocket"


def test_saving_an_adapter_writes_no_model_card(tmp_path: Path) -> None:
    editable = tiny_editable()
    adapters.attach(editable, [1], LORA, 0)
    adapters.save(editable, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    card = tmp_path / "adapter" / "README.md"
    card.write_text("Mine.")
    adapters.save(editable, tmp_path / "adapter")
    assert card.read_text() == "Mine."


def test_detaching_an_adapter_leaves_the_base_model(folder: Path) -> None:
    editable = load(str(folder))
    base = editable.model(IDS).logits
    adapters.attach(editable, [1], LORA, 0)
    assert editable.edited
    adapters.detach(editable)
    assert not editable.edited
    assert torch.equal(editable.model(IDS).logits, base)


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(load(str(tmp_path)).model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", VISION)
def test_the_language_model_of_a_vision_model_is_edited(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    editable = load(str(tmp_path / "model"))
    assert editable.auto_class == "AutoModelForImageTextToText"
    assert torch.equal(editable.model(IDS).logits, model(IDS).logits)
    weights = {"loss.adversarial_weight": 0.0, "loss.retain_weight": 0.1, "train.rounds": 3}
    training = build_training(editable, tiny_config(weights))
    losses = [event.losses["matching"] for event in training.trainer.train()]
    assert losses[-1] < losses[0]
    adapters.save(editable, tmp_path / "adapter")
    edited = editable.model(IDS).logits
    again = load(str(tmp_path / "model"), adapter=tmp_path / "adapter")
    assert torch.allclose(again.model(IDS).logits, edited, atol=1e-6)
    assert not any("visi" in name or "visual" in name for name in adapters.parameters(editable))


def test_a_model_that_generates_no_text_is_rejected(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1
    )
    CLIPVisionModel(vision).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as raised:
        load(str(tmp_path))
    assert raised.value.code == "architecture-unsupported"


def test_a_tokenizer_without_an_end_token_is_rejected(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="eos_token") as raised:
        load(str(folder))
    assert raised.value.code == "tokenizer-no-eos"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda w: w.pop(NORM), "weights-mismatch", NORM),
        (lambda w: w.update(stranger=torch.zeros(2)), "weights-mismatch", "stranger"),
        (lambda w: w[NORM].fill_(torch.nan), "weights-not-finite", f"{NORM}' of .* NaN"),
        (lambda w: w[NORM].fill_(-torch.inf), "weights-not-finite", f"{NORM}' of .* infinity"),
    ],
)
def test_weights_that_are_not_the_models_are_an_error_that_names_one(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], code: str, named: str
) -> None:
    change_weights(folder, change)
    with pytest.raises(ModelError, match=named) as raised:
        load(str(folder))
    assert raised.value.code == code


def test_tied_weights_may_be_missing(tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load(str(tmp_path))


def spoil(folder: Path, name: str) -> None:
    """Make one of the problems that `retouch doctor` finds."""
    weights = folder / "model.safetensors"
    if name == "weights-truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif name == "weights-lfs-pointer":
        weights.write_bytes(LFS_POINTER + b"/spec/v1\n")
    elif name == "model-with-adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif name == "model-is-adapter":
        weights.unlink()
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif name == "weights-pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif name == "tokenizer-mismatch":
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"more{i}" for i in range(9000)])
        tokenizer.save_pretrained(folder)
    elif name == "chat-template-no-default":
        (folder / "chat_template.jinja").unlink()
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = {"rag": "{{ messages }}", "tools": "{{ messages }}"}
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "code",
    [
        "weights-truncated",
        "weights-lfs-pointer",
        "model-with-adapter",
        "model-is-adapter",
        "weights-pickled",
        "tokenizer-mismatch",
        "chat-template-no-default",
    ],
)
def test_the_checks_of_doctor_come_before_every_use(folder: Path, code: str) -> None:
    spoil(folder, code)
    with pytest.raises(ModelError) as raised:
        load(str(folder))
    assert raised.value.code == code
    report = run_preflight(EditConfig(model=str(folder)))
    assert code in {finding.code for finding in report.errors}
