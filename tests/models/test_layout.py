"""Blocks and adaptable layers are found, and adapters on them change what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from helpers.tiny_models import tiny_editable, tiny_model
from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.layout import find_layout

IDS = torch.arange(10, 20)[None]


def attach(editable: EditableModel, *layers: int, modules: tuple[str, ...] = ()) -> None:
    adapters.attach(editable, layers, LoraConfig(r=4, lora_alpha=8.0, target_modules=modules), 0)


def test_the_layout_of_a_wrapped_model_is_the_same() -> None:
    editable = tiny_editable()
    before = editable.blocks
    attach(editable, 1)
    assert all(a is b for a, b in zip(before, editable.blocks, strict=True))


def test_a_model_without_a_matching_list_is_not_supported() -> None:
    editable = tiny_editable()
    editable.model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"7 blocks.*layers \(4\)") as raised:
        find_layout(editable.model)
    assert raised.value.code == "architecture-unsupported"


def test_missing_modules_and_layers_are_errors_that_name_those_there_are() -> None:
    editable = tiny_editable()
    with pytest.raises(ModelError, match="q_proj") as raised:
        attach(editable, 1, modules=("nowhere",))
    assert raised.value.code == "module-missing"
    with pytest.raises(ModelError, match=r"Layer 9 .* layers 0 to 3") as raised:
        attach(editable, 9)
    assert raised.value.code == "layer-missing"


def test_a_new_adapter_changes_nothing_and_base_model_switches_it_off() -> None:
    editable = tiny_editable()
    base = editable.model(input_ids=IDS).logits
    attach(editable, 1, 2)
    assert torch.equal(editable.model(input_ids=IDS).logits, base)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    assert not torch.allclose(editable.model(input_ids=IDS).logits, base)
    with editable.base_model():
        assert torch.equal(editable.model(input_ids=IDS).logits, base)


def test_saved_and_merged_adapters_give_the_same_logits(tmp_path: Path) -> None:
    editable = tiny_editable()
    attach(editable, 1, 2)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    edited = editable.model(input_ids=IDS).logits
    folder = tmp_path / "adapter"
    adapters.save(editable, folder)
    assert [file.name for file in folder.glob("adapter_model*")] == ["adapter_model.safetensors"]
    again = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
    assert torch.allclose(again(input_ids=IDS).logits, edited, atol=1e-5)
    assert torch.allclose(adapters.merged(editable)(input_ids=IDS).logits, edited, atol=1e-4)
    assert torch.equal(editable.model(input_ids=IDS).logits, edited)
