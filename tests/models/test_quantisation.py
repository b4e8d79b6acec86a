from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retouch.core.errors import ModelError
from retouch.models import adapters, weights
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.model_copy import merged_copy
from retouch.models.segment import Segment
from retouch.representations.losses import normalized_mse_loss
from helpers.tiny_models import tiny_model, tiny_tokenizer

IDS = torch.arange(6, 46).reshape(4, 10)
KINDS: tuple[weights.Quantize, ...] = ("8bit", "4bit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As wide as a block of 64 numbers that share a scale.
    path = tmp_path_factory.mktemp("base")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def moved(editable: EditableModel) -> None:
    adapters.attach(editable, [1, 2], (), 4, 8.0, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapters.parameters(editable).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_moves_a_quantised_model_and_not_its_weights(
    folder: Path, tmp_path: Path, kind: weights.Quantize
) -> None:
    editable = load(str(folder), quantize=kind, device="cpu")
    assert editable.quantised
    whole = load(str(folder), device="cpu")
    assert not whole.quantised
    exact = whole.model(IDS).logits
    rounded = editable.model(IDS).logits
    assert 0 < (rounded - exact).abs().max() < 0.5 * exact.abs().max()
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}

    segment = Segment(editable, 1, 2)
    segment.check(IDS)
    inputs = segment.capture_inputs(IDS)
    wanted = segment.forward(segment.capture_inputs(IDS.flip(0)), (2,))[2].detach()
    adapters.attach(editable, [1, 2], (), 4, 8.0, 0)
    optimizer = torch.optim.Adam(adapters.parameters(editable).values(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = normalized_mse_loss(segment.forward(inputs, (2,))[2], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    edited = editable.model(IDS).logits

    adapters.save(editable, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in saved.items())
    again = load(str(folder), quantize=kind, adapter=tmp_path / "adapter", device="cpu")
    assert torch.allclose(again.model(IDS).logits, edited, atol=1e-5)

    adapters.detach(editable)
    assert torch.equal(editable.model(IDS).logits, rounded)
    assert all(torch.equal(p, before[n]) for n, p in editable.model.named_parameters())


def test_gradients_through_4_bit_weights_are_those_through_their_values(folder: Path) -> None:
    found = []
    for whole in (False, True):
        editable = load(str(folder), quantize="4bit", device="cpu")
        editable.model(IDS)  # what an inference may leave behind
        if whole:
            editable.model = editable.model.dequantize().float()
            assert not editable.quantised
        moved(editable)
        segment = Segment(editable, 1, 2)
        segment.forward(segment.capture_inputs(IDS), (2,))[2].pow(2).mean().backward()
        found.append({name: p.grad for name, p in adapters.parameters(editable).items()})
    quantised, exact = found
    assert quantised.keys() == exact.keys()
    for name, slope in exact.items():
        assert torch.allclose(quantised[name], slope, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_take_no_adapter_in(
    folder: Path, tmp_path: Path, kind: weights.Quantize
) -> None:
    editable = load(str(folder), quantize=kind, device="cpu")
    merged_copy(editable)  # there is nothing to merge
    moved(editable)
    with pytest.raises(ModelError, match=r"cannot be merged.*--quantize none"):
        adapters.merged(editable)
    with pytest.raises(ModelError, match="cannot be merged"):
        merged_copy(editable)
    # What the message says hints it.
    adapters.save(editable, tmp_path)
    whole = load(str(folder), adapter=tmp_path, device="cpu")
    edited = whole.model(IDS).logits
    assert torch.allclose(adapters.merged(whole)(IDS).logits, edited, atol=1e-5)


def test_without_bitsandbytes_there_is_a_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"bitsandbytes.*not installed.*retouch\[quantized\]"):
        load(str(folder), quantize="4bit", device="cpu")
    assert not load(str(folder), device="cpu").quantised


def test_a_quantisation_that_there_is_not_names_those_that_there_are(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no quantisation '2bit'.*none, 8bit, 4bit"):
        load(str(folder), quantize="2bit", device="cpu")  # type: ignore[arg-type]
