"""What is foreseen from shapes, held against what real models hold and do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from retouch.models import adapters
from retouch.models.layout import find_layout
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.segment import Segment
from retouch.models.weights import Quantize
from helpers.tiny_models import tiny_editable, tiny_model, tiny_tokenizer

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"]

BLOCKS = [1, 2]
ROWS, TOKENS = 8, 24


def on_meta(model: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_the_numbers_of_a_model_without_weights_are_those_of_the_model(
    family: str, tied: bool
) -> None:
    real = tiny_model(family, tie_word_embeddings=tied)
    empty = on_meta(real)
    counts = footprint.count(empty, find_layout(empty))
    assert next(empty.parameters()).is_meta
    distinct = {p.data_ptr(): p.numel() for p in real.parameters()}
    assert counts.total == sum(distinct.values())
    blocks = find_layout(real).blocks(real)
    assert list(counts.blocks) == [sum(p.numel() for p in b.parameters()) for b in blocks]
    assert counts.head == 99 * 32
    # A shared head is counted once: then there are the embeddings alone.
    assert counts.outside < (2 if tied else 3) * 99 * 32 + 256 * 32 * (family == "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_numbers_are_those_that_peft_makes(family: str) -> None:
    editable = tiny_editable(family)
    names = editable.layout.linears(editable.model, BLOCKS)
    foreseen = footprint.adapter_numbers(editable.model, names, 4)
    adapters.attach(editable, BLOCKS, (), 4, 8.0, 0)
    assert foreseen == sum(p.numel() for p in adapters.parameters(editable).values())


def saved_bytes(editable: EditableModel, modules: tuple[str, ...] = ()) -> int:
    """What autograd keeps of the segment's forward pass, weights left out, each storage once."""
    adapters.attach(editable, BLOCKS, modules, 8, 16.0, 0)
    segment = Segment(editable, BLOCKS[0], BLOCKS[-1])
    inputs = segment.capture_inputs(torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % 90 + 6)
    weights = {p.untyped_storage().data_ptr() for p in editable.model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Held on to, so that no storage is given out twice.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        segment.forward(inputs, BLOCKS)[BLOCKS[-1]].float().square().mean()
    adapters.detach(editable)
    return sum(size for size, _ in kept.values())


def foreseen_bytes(editable: EditableModel, modules: tuple[str, ...] = ()) -> int:
    names = editable.layout.linears(editable.model, BLOCKS, modules)
    kind = next(editable.model.parameters()).dtype
    return footprint.activation_bytes(
        editable.model, editable.layout, BLOCKS, set(names), ROWS, TOKENS, kind.itemsize
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_foreseen_within_a_factor_of_two(family: str) -> None:
    editable = tiny_editable(family)
    assert 0.5 < foreseen_bytes(editable) / saved_bytes(editable) < 2


def test_activations_of_pocket_and_of_a_wider_model_are_foreseen() -> None:
    assert 0.8 < (foreseen_bytes(pocket := load("pocket")) / saved_bytes(pocket)) < 1.4
    wide = tiny_editable("llama", hidden_size=256, intermediate_size=688, num_attention_heads=8)
    assert 0.8 < foreseen_bytes(wide) / saved_bytes(wide) < 1.4


@pytest.mark.parametrize("modules", [(), ("q_proj", "v_proj")])
def test_activations_below_float32_count_the_adapters_copies(modules: tuple[str, ...]) -> None:
    editable = tiny_editable("llama", hidden_size=256, intermediate_size=688)
    editable.model.to(torch.bfloat16)
    assert 0.7 < foreseen_bytes(editable, modules) / saved_bytes(editable, modules) < 1.5


def test_operations_of_a_forward_pass_are_those_that_are_counted() -> None:
    editable = tiny_editable("llama", hidden_size=128, intermediate_size=256)
    counts = footprint.count(editable.model, editable.layout)
    ids = torch.arange(6, 46).reshape(4, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        editable.model(input_ids=ids, use_cache=False)
    whole = sum(counts.passed) + counts.head
    # The norms' weights multiply nothing big, and attention's own part is left out.
    assert footprint.forward(whole, ids.numel()) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_operations_of_a_training_step_through_frozen_weights() -> None:
    editable = tiny_editable("llama", hidden_size=128, intermediate_size=256)
    counts = footprint.count(editable.model, editable.layout)
    ids = torch.arange(6, 86).reshape(4, 20)
    adapters.attach(editable, BLOCKS, (), 4, 8.0, 0)
    adapter = sum(p.numel() for p in adapters.parameters(editable).values())
    segment = Segment(editable, 1, 2)
    inputs = segment.capture_inputs(ids)
    with FlopCounterMode(display=False) as counter:
        segment.forward(inputs, (2,))[2].square().mean().backward()
    passed = sum(counts.passed[1:3])
    # The first block's input needs no gradient: less than foreseen, by a part of one block.
    assert footprint.trained(passed, adapter, ids.numel()) == pytest.approx(
        counter.get_total_flops(), rel=0.2
    )


def test_the_cache_is_what_a_generation_keeps() -> None:
    editable = tiny_editable("llama")
    ids = torch.arange(6, 46).reshape(4, 10)
    cache = editable.model(input_ids=ids, use_cache=True).past_key_values
    real = sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )
    assert footprint.cache_bytes(editable.model.config, 4, 10, 4) == real


def test_a_model_without_attention_is_counted_too() -> None:
    editable = tiny_editable("mamba")
    del editable.model.config.num_attention_heads
    assert footprint.cache_bytes(editable.model.config, 4, 10, 4) == 0
    assert foreseen_bytes(editable) > 0
    # The kernel of its convolution is no expert.
    assert not footprint.fused(editable.blocks[0])


def test_of_a_routers_experts_a_token_passes_the_chosen_ones() -> None:
    model = on_meta(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=1))
    layout = find_layout(model)
    block = layout.blocks(model)[0]
    counts = footprint.count(model, layout)
    experts = 4 * (2 * 64 * 32 + 64 * 32)
    others = sum(p.numel() for p in block.parameters() if p.dim() == 2)
    assert counts.passed[0] == others + experts // 4
    assert counts.blocks[0] > others + experts
    assert sorted(footprint.fused(block)) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_weights_are_as_many_bytes_as_foreseen(
    family: str, kind: Quantize, tmp_path: Path
) -> None:
    model = tiny_model(family, hidden_size=64, intermediate_size=128, n_inner=128)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    real = load(str(tmp_path), quantize=kind, device="cpu").model
    real(torch.arange(6, 16)[None])  # some are packed at the first use
    size = 0
    for name, parameter in real.named_parameters():
        size += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        size += 0 if state is None else state.absmax.numel() * 4
        scale = getattr(parameter, "SCB", None)
        scale = (
            getattr(real.get_submodule(name.rpartition(".")[0]).state, "SCB", scale)
            if (kind == "8bit" and parameter.dtype == torch.int8)
            else None
        )
        size += 0 if scale is None else scale.numel() * 4
    assert footprint.quantised_bytes(on_meta(model), kind, 4) == pytest.approx(size, rel=0.01)
