"""Products of frozen weights in bfloat16, with and without an adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.models import bfloat16_linears
from retouch.models.adapters import attach, parameters
from retouch.models.bfloat16_linears import make_bfloat16_linears
from retouch.models.segment import Segment

IDS = torch.arange(6, 46).reshape(4, 10)

INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def linear(size: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(size, 3)


def test_products_are_rounded_inside_the_context_alone() -> None:
    module, states = linear(512), torch.randn(5, 512)
    exact = module(states)
    made = make_bfloat16_linears([module], "bfloat16")
    assert made is not None
    with made.applied():
        rounded = module(states)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
    assert rounded.dtype == torch.float32
    assert torch.equal(module(states), exact)


def test_weights_that_were_changed_are_copied_again() -> None:
    module, states = linear(512), torch.randn(5, 512)
    made = make_bfloat16_linears([module], "bfloat16")
    assert made is not None
    with torch.no_grad():
        module.weight.mul_(2)
    with made.applied():
        torch.testing.assert_close(module(states), module(states))
        rounded = module(states)
    torch.testing.assert_close(rounded, module(states), rtol=0.02, atol=0.04)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_none_are_made_where_none_are_wanted(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions in INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, instructions, lambda: False)
    assert make_bfloat16_linears([linear(512)], dtype) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("supported", INSTRUCTIONS)
def test_auto_makes_them_where_the_processor_has_instructions(
    supported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for instructions in INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, instructions, lambda name=instructions: name == supported)
    assert make_bfloat16_linears([linear(512)], "auto") is not None


def test_small_layers_stay_in_float32() -> None:
    assert make_bfloat16_linears([linear(511)], "bfloat16") is None


def test_an_adapter_is_trained_through_rounded_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16_linears, "MIN_SIZE", 1)
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        editable = tiny_editable()
        config = editable.load_config.model_copy(update={"compute_dtype": dtype})
        editable.loaded_with = config
        segment = Segment(editable, 1, 3)
        inputs = segment.capture_inputs(IDS)
        attach(editable, [1, 2], LoraConfig(), 0)
        with torch.no_grad():
            for weight in parameters(editable).values():
                weight.add_(0.05)
        segment.forward(inputs, (3,))[3].pow(2).mean().backward()
        gradients[dtype] = torch.cat([p.grad.flatten() for p in parameters(editable).values()])
        with editable.base_model():
            base = segment.forward(inputs, (3,))[3]
        assert not torch.equal(base, segment.forward(inputs, (3,))[3])
    exact, rounded = gradients["float32"], gradients["bfloat16"]
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.2 * exact.norm()
