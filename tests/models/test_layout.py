from __future__ import annotations

import pytest
import torch

from retouch.core.errors import ModelError
from retouch.models import adapters
from retouch.models.layout import find_layout
from helpers.tiny_models import tiny_editable


def test_layout_survives_peft_wrapping() -> None:
    editable = tiny_editable()
    before = editable.blocks
    adapters.attach(editable, [1], (), 4, 8.0, 0)
    assert all(a is b for a, b in zip(before, editable.blocks, strict=True))


def test_no_block_list_is_a_clear_error() -> None:
    editable = tiny_editable()
    editable.model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"7 blocks.*layers \(4\)"):
        find_layout(editable.model)


def test_adapters_that_match_nothing_name_what_there_is() -> None:
    editable = tiny_editable()
    with pytest.raises(ModelError, match="q_proj"):
        adapters.attach(editable, [1], ("nowhere",), 4, 8.0, 0)
    with pytest.raises(ModelError, match="no block 9"):
        adapters.attach(editable, [9], (), 4, 8.0, 0)


def test_a_fresh_adapter_changes_nothing_and_the_reference_is_the_base() -> None:
    editable = tiny_editable()
    ids = torch.arange(10, 20)[None]
    base = editable.model(input_ids=ids).logits
    adapters.attach(editable, [1, 2], (), 4, 8.0, 0)
    assert torch.equal(editable.model(input_ids=ids).logits, base)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    assert not torch.allclose(editable.model(input_ids=ids).logits, base)
    with editable.base_model():
        assert torch.equal(editable.model(input_ids=ids).logits, base)


def test_saved_and_merged_adapters_give_the_same_logits(tmp_path: object) -> None:
    from pathlib import Path

    from peft import PeftModel

    from helpers.tiny_models import tiny_model

    editable = tiny_editable()
    ids = torch.arange(10, 20)[None]
    adapters.attach(editable, [1, 2], (), 4, 8.0, 0)
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    edited = editable.model(input_ids=ids).logits
    folder = Path(str(tmp_path)) / "adapter"
    adapters.save(editable, folder)
    assert [f.suffix for f in folder.iterdir() if "model" in f.name] == [".safetensors"]
    again = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
    assert torch.allclose(again(input_ids=ids).logits, edited, atol=1e-5)
    assert torch.allclose(adapters.merged(editable)(input_ids=ids).logits, edited, atol=1e-4)
    assert torch.equal(editable.model(input_ids=ids).logits, edited)
