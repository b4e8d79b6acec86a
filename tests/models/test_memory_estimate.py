"""Estimates from shapes are compared with what real models hold and compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from helpers.tiny_models import tiny_editable, tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig, LoraConfig, Quantize
from retouch.models import adapters, memory_estimate
from retouch.models.editable_model import EditableModel
from retouch.models.layout import find_layout
from retouch.models.load import load
from retouch.models.segment import Segment

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"]

LAYERS = [1, 2]
ROWS, TOKENS = 8, 24


def on_meta(model: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_parameters_are_counted_without_weights(family: str, tied: bool) -> None:
    real = tiny_model(family, tie_word_embeddings=tied)
    empty = on_meta(real)
    counts = memory_estimate.count_parameters(empty, find_layout(empty))
    assert next(empty.parameters()).is_meta
    distinct = {p.data_ptr(): p.numel() for p in real.parameters()}
    assert counts.total == sum(distinct.values())
    blocks = find_layout(real).blocks(real)
    assert list(counts.blocks) == [sum(p.numel() for p in b.parameters()) for b in blocks]
    assert counts.head == 99 * 32
    # A tied head is counted once, with the embeddings.
    assert counts.outside < (2 if tied else 3) * 99 * 32 + 256 * 32 * (family == "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_parameters_are_those_of_peft(family: str) -> None:
    editable = tiny_editable(family)
    names = editable.layout.linears(editable.model, LAYERS)
    estimated = memory_estimate.lora_parameters(editable.model, names, 4)
    adapters.attach(editable, LAYERS, LoraConfig(r=4, lora_alpha=8.0), 0)
    assert estimated == sum(p.numel() for p in adapters.parameters(editable).values())


def saved_bytes(editable: EditableModel, modules: tuple[str, ...] = ()) -> int:
    """Bytes that autograd saves of the segment's forward pass, each storage once, no weights."""
    adapters.attach(editable, LAYERS, LoraConfig(target_modules=modules), 0)
    segment = Segment(editable, LAYERS[0], LAYERS[-1])
    inputs = segment.capture_inputs(torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % 90 + 6)
    weights = {p.untyped_storage().data_ptr() for p in editable.model.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor is kept, so that its storage is not reused.
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        segment.forward(inputs, LAYERS)[LAYERS[-1]].float().square().mean()
    adapters.detach(editable)
    return sum(size for size, _ in saved.values())


def estimated_bytes(editable: EditableModel, modules: tuple[str, ...] = ()) -> int:
    names = editable.layout.linears(editable.model, LAYERS, modules)
    itemsize = editable.model.dtype.itemsize
    return memory_estimate.activation_bytes(
        editable.model, editable.layout, LAYERS, set(names), ROWS, TOKENS, itemsize
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_estimated_within_a_factor_of_two(family: str) -> None:
    editable = tiny_editable(family)
    assert 0.5 < estimated_bytes(editable) / saved_bytes(editable) < 2


def test_activations_of_larger_models_are_estimated_more_exactly() -> None:
    pocket = load("pocket")
    assert 0.8 < estimated_bytes(pocket) / saved_bytes(pocket) < 1.4
    wide = tiny_editable("llama", hidden_size=256, intermediate_size=688, num_attention_heads=8)
    assert 0.8 < estimated_bytes(wide) / saved_bytes(wide) < 1.4


@pytest.mark.parametrize("modules", [(), ("q_proj", "v_proj")])
def test_the_adapters_copies_in_float32_are_counted(modules: tuple[str, ...]) -> None:
    editable = tiny_editable("llama", hidden_size=256, intermediate_size=688)
    editable.model.to(torch.bfloat16)
    assert 0.7 < estimated_bytes(editable, modules) / saved_bytes(editable, modules) < 1.5


def test_forward_flops_are_those_of_pytorchs_counter() -> None:
    editable = tiny_editable("llama", hidden_size=128, intermediate_size=256)
    counts = memory_estimate.count_parameters(editable.model, editable.layout)
    ids = torch.arange(6, 46).reshape(4, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        editable.model(input_ids=ids, use_cache=False)
    # Norms and the attention between tokens are left out.
    assert memory_estimate.forward_flops(counts.active_total, ids.numel()) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_training_flops_are_those_of_pytorchs_counter() -> None:
    editable = tiny_editable("llama", hidden_size=128, intermediate_size=256)
    counts = memory_estimate.count_parameters(editable.model, editable.layout)
    ids = torch.arange(6, 86).reshape(4, 20)
    adapters.attach(editable, LAYERS, LoraConfig(r=4, lora_alpha=8.0), 0)
    adapter = sum(p.numel() for p in adapters.parameters(editable).values())
    segment = Segment(editable, 1, 2)
    inputs = segment.capture_inputs(ids)
    with FlopCounterMode(display=False) as counter:
        segment.forward(inputs, (2,))[2].square().mean().backward()
    active = sum(counts.active[1:3])
    # The first block's input needs no gradient, so that the estimate is slightly too high.
    assert memory_estimate.training_flops(active, adapter, ids.numel()) == pytest.approx(
        counter.get_total_flops(), rel=0.2
    )


def test_the_kv_cache_is_that_of_a_generation() -> None:
    editable = tiny_editable("llama")
    ids = torch.arange(6, 46).reshape(4, 10)
    cache = editable.model(input_ids=ids, use_cache=True).past_key_values
    real = sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )
    assert memory_estimate.kv_cache_bytes(editable.model.config, 4, 10, 4) == real


def test_a_model_without_attention_has_no_kv_cache() -> None:
    editable = tiny_editable("mamba")
    del editable.model.config.num_attention_heads
    assert memory_estimate.kv_cache_bytes(editable.model.config, 4, 10, 4) == 0
    assert estimated_bytes(editable) > 0
    # The kernel of its convolution is not an expert.
    assert not memory_estimate.fused_experts(editable.blocks[0])


def test_only_the_selected_experts_are_active() -> None:
    model = on_meta(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=1))
    layout = find_layout(model)
    block = layout.blocks(model)[0]
    counts = memory_estimate.count_parameters(model, layout)
    experts = 4 * (2 * 64 * 32 + 64 * 32)
    others = sum(p.numel() for p in block.parameters() if p.dim() == 2)
    assert counts.active[0] == others + experts // 4
    assert counts.blocks[0] > others + experts
    assert sorted(memory_estimate.fused_experts(block)) == [
        "mlp.experts.down_proj",
        "mlp.experts.gate_up_proj",
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_bytes_of_quantised_weights_are_those_of_bitsandbytes(
    family: str, kind: Quantize, tmp_path: Path
) -> None:
    model = tiny_model(family, hidden_size=64, intermediate_size=128, n_inner=128)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    real = load(str(tmp_path), LoadConfig(quantize=kind, device="cpu")).model
    real(torch.arange(6, 16)[None])  # 8-bit weights are packed at the first use
    size = 0
    for name, parameter in real.named_parameters():
        size += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        size += 0 if state is None else 4 * state.absmax.numel()
        if kind == "8bit" and parameter.dtype == torch.int8:
            module = real.get_submodule(name.rpartition(".")[0])
            scale = getattr(module.state, "SCB", getattr(parameter, "SCB", None))
            size += 0 if scale is None else 4 * scale.numel()
    assert memory_estimate.quantised_bytes(on_meta(model), kind, 4) == pytest.approx(size, rel=0.01)


def test_generation_takes_at_least_the_cache_and_fewer_rows_fit_with_less_memory() -> None:
    editable = tiny_editable()
    row = memory_estimate.generation_bytes(editable.model, editable.layout, 10, 4)
    cache = memory_estimate.kv_cache_bytes(editable.model.config, 1, 10, 4)
    assert row > cache + 4 * 99
    assert memory_estimate.max_generation_rows(None, 256, row) == 256
    assert memory_estimate.max_generation_rows(16 * row, 256, row) == 8
    assert memory_estimate.max_generation_rows(row, 256, row) == 1
