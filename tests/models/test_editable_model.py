"""A transformers model from memory: what is recorded of it, and what leaves it unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model

from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig, LoraConfig
from retouch.core.errors import ModelError
from retouch.models import adapters
from retouch.models.editable_model import IN_MEMORY, EditableModel
from retouch.models.load import load

IDS = torch.arange(6, 46).reshape(4, 10)
LORA = LoraConfig(r=2, lora_alpha=4.0)


def in_memory() -> EditableModel:
    return EditableModel.from_transformers(tiny_model(), tiny_tokenizer())


def test_dtype_and_revision_of_the_model_are_recorded() -> None:
    model = tiny_model().to(torch.bfloat16)
    model.config._commit_hash = "0123abc"
    editable = EditableModel.from_transformers(model, tiny_tokenizer(), "owner/name")
    assert editable.name == "owner/name"
    assert editable.in_memory
    assert editable.load_config == LoadConfig(
        revision="0123abc", device="cpu", dtype="bfloat16", quantize="none"
    )


def test_the_name_is_that_of_the_loaded_checkpoint(tmp_path: Path) -> None:
    assert in_memory().name == IN_MEMORY
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    saved = load(str(tmp_path))
    editable = EditableModel.from_transformers(saved.model, saved.tokenizer)
    assert editable.name == str(tmp_path)


def test_the_model_is_frozen_and_in_evaluation_mode() -> None:
    model = tiny_model().requires_grad_(True).train()
    editable = EditableModel.from_transformers(model, tiny_tokenizer())
    assert editable.model is model
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_the_chat_template_is_kept_and_the_callers_tokenizer_is_unchanged() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "left"
    editable = EditableModel.from_transformers(tiny_model(), tokenizer)
    assert editable.tokenizer.chat_template == tokenizer.chat_template
    assert editable.has_chat_template
    assert editable.tokenizer.pad_token == tokenizer.eos_token
    assert editable.tokenizer.padding_side == "right"
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "left")


def test_a_tokenizer_without_an_end_token_is_rejected() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError) as raised:
        EditableModel.from_transformers(tiny_model(), tokenizer)
    assert raised.value.code == "tokenizer-no-eos"


def test_a_model_with_an_adapter_is_rejected() -> None:
    wrapped = get_peft_model(tiny_model(), PeftLoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError) as raised:
        EditableModel.from_transformers(wrapped, tiny_tokenizer())
    assert raised.value.code == "model-edited"


def test_the_fingerprint_depends_on_the_weights_and_not_on_an_adapter() -> None:
    editable = in_memory()
    before = editable.fingerprint
    assert before == in_memory().fingerprint
    adapters.attach(editable, [1], LORA, 0)
    assert editable.fingerprint == before
    adapters.detach(editable)
    with torch.no_grad():
        editable.blocks[2].get_submodule("mlp.up_proj").weight[0, 0] += 1.0  # type: ignore[operator, index]
    assert editable.fingerprint != before


def test_a_merged_copy_shares_no_weights_and_leaves_the_original() -> None:
    editable = in_memory()
    base = editable.model(IDS).logits
    adapters.attach(editable, [1], LORA, 0)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    edited = editable.model(IDS).logits
    copied = editable.merged_copy()
    assert not copied.adapted
    assert torch.allclose(copied.model(IDS).logits, edited, atol=1e-4)
    adapters.detach(editable)
    assert torch.equal(editable.model(IDS).logits, base)
    assert torch.allclose(copied.model(IDS).logits, edited, atol=1e-4)
