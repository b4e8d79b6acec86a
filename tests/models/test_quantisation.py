"""A model in 8 or 4 bits is edited like any other; its weights stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig, LoraConfig, Quantize
from retouch.core.config_file import resolve
from retouch.core.errors import ConfigError, ModelError
from retouch.models import adapters, weights
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.segment import Segment
from retouch.representations.losses import normalized_mse_loss

IDS = torch.arange(6, 46).reshape(4, 10)
KINDS: tuple[Quantize, ...] = ("8bit", "4bit")
LORA = LoraConfig(r=4, lora_alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As wide as the 64 elements that share a scale.
    path = tmp_path_factory.mktemp("base")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def load_on_cpu(
    folder: Path, quantize: Quantize = "none", adapter: Path | None = None
) -> EditableModel:
    return load(str(folder), LoadConfig(quantize=quantize, device="cpu"), adapter=adapter)


def attach_random(editable: EditableModel) -> None:
    adapters.attach(editable, [1, 2], LORA, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapters.parameters(editable).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_a_quantised_model_but_not_its_weights(
    folder: Path, tmp_path: Path, kind: Quantize
) -> None:
    editable = load_on_cpu(folder, kind)
    assert editable.quantised
    assert editable.load_config.quantize == kind
    whole = load_on_cpu(folder)
    assert not whole.quantised
    exact = whole.model(IDS).logits
    rounded = editable.model(IDS).logits
    assert 0 < (rounded - exact).abs().max() < 0.5 * exact.abs().max()
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}

    segment = Segment(editable, 1, 2)
    segment.check(IDS)
    inputs = segment.capture_inputs(IDS)
    target = segment.forward(segment.capture_inputs(IDS.flip(0)), (2,))[2].detach()
    adapters.attach(editable, [1, 2], LORA, 0)
    optimizer = torch.optim.Adam(adapters.parameters(editable).values(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = normalized_mse_loss(segment.forward(inputs, (2,))[2], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    edited = editable.model(IDS).logits

    adapters.save(editable, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in saved.items())
    again = load_on_cpu(folder, kind, tmp_path / "adapter")
    assert torch.allclose(again.model(IDS).logits, edited, atol=1e-5)

    adapters.detach(editable)
    assert torch.equal(editable.model(IDS).logits, rounded)
    assert all(torch.equal(p, before[n]) for n, p in editable.model.named_parameters())


def test_gradients_through_4_bit_weights_are_those_through_their_values(folder: Path) -> None:
    gradients = []
    for dequantise in (False, True):
        editable = load_on_cpu(folder, "4bit")
        editable.model(IDS)  # an inference must not change what the gradients flow through
        if dequantise:
            editable.model = editable.model.dequantize().float()
            assert not editable.quantised
        attach_random(editable)
        segment = Segment(editable, 1, 2)
        segment.forward(segment.capture_inputs(IDS), (2,))[2].pow(2).mean().backward()
        gradients.append({name: p.grad for name, p in adapters.parameters(editable).items()})
    quantised, exact = gradients
    assert quantised.keys() == exact.keys()
    for name, gradient in exact.items():
        assert torch.allclose(quantised[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_not_merged_into_quantised_weights(
    folder: Path, tmp_path: Path, kind: Quantize
) -> None:
    editable = load_on_cpu(folder, kind)
    editable.merged_copy()  # nothing to merge
    attach_random(editable)
    for merge in (lambda: adapters.merged(editable), editable.merged_copy):
        with pytest.raises(ModelError, match=r"cannot be merged.*unquantised") as raised:
            merge()
        assert raised.value.code == "model-quantised"
    # The hint works.
    adapters.save(editable, tmp_path)
    whole = load_on_cpu(folder, adapter=tmp_path)
    edited = whole.model(IDS).logits
    assert torch.allclose(adapters.merged(whole)(IDS).logits, edited, atol=1e-5)


def test_without_bitsandbytes_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"bitsandbytes.*retouch\[quantized\]") as raised:
        load_on_cpu(folder, "4bit")
    assert raised.value.code == "library-missing"
    assert not load_on_cpu(folder).quantised


def test_an_unknown_quantisation_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'none', '8bit' or '4bit', got '2bit'"):
        resolve({"load": {"quantize": "2bit"}})
