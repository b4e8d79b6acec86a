"""An adapter is loaded on the model that it was made on alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.models import adapters
from retouch.models.base_record import FILE, MAX_TENSORS
from retouch.models.editable_model import EditableModel
from retouch.models.load import add_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    editable = tiny_editable()
    adapters.attach(editable, [0], LoraConfig(r=2), seed=0)
    adapters.save(editable, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(editable: EditableModel) -> None:
    """Another checkpoint of the same architecture."""
    weights = list(editable.base.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.5)


def refused(editable: EditableModel, adapter: Path) -> ModelError:
    with pytest.raises(ModelError) as raised:
        add_adapter(editable, adapter)
    assert not editable.adapted  # the model stays the base
    return raised.value


def test_the_same_model_is_accepted_in_every_dtype(adapter: Path) -> None:
    add_adapter(tiny_editable(), adapter)
    for dtype in (torch.bfloat16, torch.float16):
        editable = tiny_editable()
        editable.model.to(dtype)
        add_adapter(editable, adapter)


def test_another_checkpoint_is_an_error_that_names_a_weight(adapter: Path) -> None:
    editable = tiny_editable()
    change(editable)
    error = refused(editable, adapter)
    assert error.code == "base-differs"
    assert "has other values" in error.message
    assert any(f"'{name}'" in error.message for name, _ in editable.base.named_parameters())


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda record: record["shape"].append(1), "has another shape"),
        (lambda record: record["values"].pop(), "has other values"),
        (lambda record: record["values"].__setitem__(0, 1e30), "has other values"),
    ],
)
def test_a_record_of_another_model_is_an_error(
    adapter: Path, edit: Callable[[Any], Any], problem: str
) -> None:
    values = json.loads((adapter / FILE).read_text())
    assert 0 < len(values["tensors"]) <= MAX_TENSORS
    edit(next(iter(values["tensors"].values())))
    (adapter / FILE).write_text(json.dumps(values))
    error = refused(tiny_editable(), adapter)
    assert problem in error.message


def test_a_weight_that_the_model_lacks_is_named(adapter: Path) -> None:
    values = json.loads((adapter / FILE).read_text())
    values["tensors"]["elsewhere.weight"] = {"shape": [1], "values": [0.0]}
    (adapter / FILE).write_text(json.dumps(values))
    assert "elsewhere.weight" in refused(tiny_editable(), adapter).message


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architecture": 1, "tensors": {"a": 3}}'])
def test_a_broken_record_is_an_error(adapter: Path, text: str) -> None:
    (adapter / FILE).write_text(text)
    assert refused(tiny_editable(), adapter).code == "base-record-broken"


def test_an_adapter_from_elsewhere_has_no_record(adapter: Path) -> None:
    (adapter / FILE).unlink()
    editable = tiny_editable()
    change(editable)
    add_adapter(editable, adapter)
