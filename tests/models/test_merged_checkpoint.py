"""A merged model is written as its checkpoint is: dtypes, files and generation settings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from helpers.char_tokenizer import add_random_adapter
from helpers.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.merged_checkpoint import checkpoint_form, write_merged_checkpoint

GENERATION = {"repetition_penalty": 1.3, "eos_token_id": 2, "transformers_version": "5.0.0"}


def save_checkpoint(folder: Path) -> Path:
    """A model in bfloat16, but for its last norm, in several files."""
    model = tiny_model().to(torch.bfloat16)
    model.model.norm.to(torch.float32)
    model.save_pretrained(folder, max_shard_size="25KB")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
    return found


def test_a_merged_model_has_the_form_of_its_checkpoint(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base")
    editable = load(str(base))
    assert editable.model.dtype == torch.float32
    add_random_adapter(editable, 0.5)
    expected = adapters.merged(editable).state_dict()
    out = tmp_path / "out"
    write_merged_checkpoint(editable, out)
    before, after = dtypes(base), dtypes(out)
    assert before == after
    assert Counter(before.values())[torch.float32] == 1
    count = len(list(base.glob("*.safetensors")))
    assert count > 2
    assert abs(len(list(out.glob("*.safetensors"))) - count) <= 1
    name = "generation_config.json"
    assert (out / name).read_bytes() == (base / name).read_bytes()
    written = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(written[key], value, rtol=1e-2, atol=1e-4)
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    # What was merged is still as it was loaded.
    assert editable.model.dtype == torch.float32


def test_a_checkpoint_without_generation_settings_gets_none(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "generation_config.json").unlink()
    editable = load(str(base), adapter=None)
    write_merged_checkpoint(add_random_adapter(editable, 0.5), tmp_path / "out")
    assert not (tmp_path / "out" / "generation_config.json").exists()
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_a_model_in_memory_is_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model().to(torch.bfloat16)
    editable = EditableModel.from_transformers(model, tiny_tokenizer())
    assert checkpoint_form(editable).dtype is None
    write_merged_checkpoint(add_random_adapter(editable, 0.5), tmp_path / "out")
    assert set(dtypes(tmp_path / "out").values()) == {torch.bfloat16}
