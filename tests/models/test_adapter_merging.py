from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from helpers.char_tokenizer import char_editable
from helpers.edited import edited_in_every_way, has_weights, logits, weights
from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.core.types import Message
from retouch.models import adapters
from retouch.models.adapter_merging import has_strength, merge_adapters, scaled
from retouch.models.interventions import Prompting


def test_a_merged_copy_is_the_same_model_on_weights_of_its_own() -> None:
    editable = edited_in_every_way()
    before, expected = weights(editable), logits(editable)
    copied = editable.merged_copy()
    assert not copied.adapted
    assert torch.allclose(logits(copied), expected, atol=1e-5 * float(expected.abs().max()))
    turns = (Message("user", "hello"),)
    assert copied.rewrite_prompt(turns) == editable.rewrite_prompt(turns) != turns
    # The original has its hooks still, once, and they are not the copy's.
    assert torch.equal(logits(editable), expected)
    assert has_weights(editable, before)
    adapters.detach(copied)
    with torch.no_grad():
        for weight in copied.model.parameters():
            weight.zero_()
    assert torch.equal(logits(editable), expected)
    assert editable.rewrite_prompt(turns) != turns
    with editable.base_model():
        assert torch.allclose(logits(editable), logits(char_editable()))


def test_a_strength_acts_inside_and_leaves_no_trace() -> None:
    editable = edited_in_every_way()
    expected, before = logits(editable), weights(editable)
    with editable.base_model():
        base = logits(editable)
    with scaled(editable, 1.0):
        assert torch.equal(logits(editable), expected)
    with scaled(editable, 0.0):
        assert torch.allclose(logits(editable), base, atol=1e-5)
    # Dividing by three and multiplying again would not restore every float.
    with scaled(editable, 1 / 3):
        assert not torch.allclose(logits(editable), expected, atol=1e-2)
    assert torch.equal(logits(editable), expected)
    assert has_weights(editable, before)


def test_only_an_adapter_or_steering_has_a_strength() -> None:
    prompted = char_editable()
    prompted.intervene(Prompting((Message("system", "Be good."),)))
    for editable in (char_editable(), prompted):
        assert not has_strength(editable)
        with pytest.raises(ConfigError) as error, scaled(editable, 1.0):
            pass
        assert error.value.code == "strength-missing"
    assert has_strength(edited_in_every_way())
    with pytest.raises(ConfigError) as error, scaled(edited_in_every_way(), -0.5):
        pass
    assert error.value.code == "strength-negative"


def save_adapter(folder: Path, layers: Sequence[int], modules: tuple[str, ...], r: int) -> Path:
    """An adapter with random weights, as a PEFT folder."""
    editable = tiny_editable()
    config = LoraConfig(r=r, lora_alpha=3.0, target_modules=modules)
    adapters.attach(editable, layers, config, seed=r)
    generator = torch.Generator().manual_seed(r)
    with torch.no_grad():
        for name, weight in editable.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    adapters.save(editable, folder)
    return folder


def weight_changes(folders: Sequence[Path], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """The difference between the merged model's weights and the base's."""
    editable = tiny_editable()
    merge_adapters(editable, folders, shares)
    merged, base = adapters.merged(editable).state_dict(), tiny_editable().model.state_dict()
    return {name: merged[name] - weight for name, weight in base.items()}


def test_adapters_of_other_ranks_and_layers_add_up_exactly(tmp_path: Path) -> None:
    a = save_adapter(tmp_path / "a", [1, 2], ("q_proj", "down_proj"), r=2)
    b = save_adapter(tmp_path / "b", [0, 2], ("down_proj",), r=3)
    first, second = weight_changes([a], [1.0]), weight_changes([b], [1.0])
    assert sum(bool(w.any()) for w in first.values()) == 4
    for shares in ([1.0, 0.0], [1.0, 1.0], [0.5, -2.0]):
        for name, weight in weight_changes([a, b], shares).items():
            expected = shares[0] * first[name] + shares[1] * second[name]
            assert torch.allclose(weight, expected, atol=1e-5)
    half = weight_changes([a], [-0.5])
    assert all(torch.allclose(half[name], -0.5 * first[name], atol=1e-6) for name in half)


def test_the_overlap_is_the_cosine_of_the_updates(tmp_path: Path) -> None:
    a = save_adapter(tmp_path / "a", [1, 2], ("q_proj", "down_proj"), r=2)
    b = save_adapter(tmp_path / "b", [0, 2], ("down_proj",), r=3)
    c = save_adapter(tmp_path / "c", [0], ("q_proj",), r=1)
    updates = [weight_changes([one], [1.0]) for one in (a, b)]
    one, other = (torch.cat([weight.flatten() for weight in found.values()]) for found in updates)
    expected = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    overlaps = merge_adapters(tiny_editable(), [a, b, c], [1.0, 0.5, 1.0])
    assert overlaps[0][1] == pytest.approx(overlaps[1][0])
    assert overlaps[0][1] == pytest.approx(expected, abs=1e-5)
    assert expected != 0
    assert [overlaps[i][i] for i in range(3)] == [pytest.approx(1.0)] * 3
    assert overlaps[0][2] == overlaps[1][2] == 0.0  # they adapt other matrices


def test_a_merged_adapter_is_saved_as_one_folder(tmp_path: Path) -> None:
    a = save_adapter(tmp_path / "a", [1, 2], ("q_proj",), r=2)
    b = save_adapter(tmp_path / "b", [0, 2], ("down_proj",), r=3)
    editable = tiny_editable()
    merge_adapters(editable, [a, b], [1.0, 0.7])
    expected = logits(editable)
    adapters.save(editable, tmp_path / "sum")
    assert (tmp_path / "sum" / "adapter_model.safetensors").is_file()
    adapters.detach(editable)
    assert torch.equal(logits(editable), logits(tiny_editable()))
    merge_adapters(editable, [tmp_path / "sum"], [1.0])
    assert torch.allclose(logits(editable), expected, atol=1e-6)


def test_adapters_that_cannot_be_merged_leave_the_base(tmp_path: Path) -> None:
    a = save_adapter(tmp_path / "a", [1], ("q_proj",), r=2)
    b = save_adapter(tmp_path / "b", [1], ("q_proj",), r=2)
    config = json.loads((b / "adapter_config.json").read_text())
    (b / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    editable = tiny_editable()
    with pytest.raises(ModelError) as unsupported:
        merge_adapters(editable, [a, b], [1.0, 1.0])
    assert unsupported.value.code == "adapter-unsupported"
    assert not editable.adapted
    with pytest.raises(ConfigError) as count:
        merge_adapters(editable, [a], [1.0, 1.0])
    assert count.value.code == "weights-count"
    merge_adapters(editable, [a], [1.0])
    with pytest.raises(ModelError) as edited:
        merge_adapters(editable, [a], [1.0])
    assert edited.value.code == "model-edited"
