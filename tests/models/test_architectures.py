"""The same edit runs on every family of decoders: layout, states, segment, adapter, saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from helpers.tiny_models import EXTRA, VISION, tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.generate import generate
from retouch.models.hooks import record_activations
from retouch.models.segment import Segment
from retouch.representations.losses import normalized_mse_loss

IDS = torch.arange(6, 46).reshape(4, 10)
COUNTERPARTS = IDS.flip(0)
ROW = torch.arange(20, 28)
LAYERS = range(4)
EDITED = [1, 2]

# Families whose experts are fused into three-dimensional parameters.
FUSED = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text", "qwen3_next", "jamba")


@dataclass
class Family:
    """A family's model, shared by its tests; each of them leaves the base model."""

    name: str
    editable: EditableModel
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=[*EXTRA, *VISION])
def family(request: pytest.FixtureRequest) -> Family:
    editable = tiny_editable(request.param)
    weights = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    return Family(request.param, editable, weights)


@pytest.fixture
def editable(family: Family) -> Iterator[EditableModel]:
    yield family.editable
    adapters.detach(family.editable)


def attach(
    editable: EditableModel,
    layers: Sequence[int] = EDITED,
    *,
    random: bool = True,
    modules: tuple[str, ...] = (),
) -> None:
    """Attach an adapter, with random weights or one that changes nothing yet."""
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=modules)
    adapters.attach(editable, layers, config, 0)
    if random:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in adapters.parameters(editable).values():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


@torch.no_grad()
def states(editable: EditableModel, ids: torch.Tensor, **more: Any) -> dict[int, torch.Tensor]:
    with record_activations(editable, LAYERS) as found:
        editable.model(input_ids=ids, use_cache=False, **more)
    return found


def test_blocks_of_the_language_model_and_their_linear_layers_are_found(
    editable: EditableModel,
) -> None:
    assert len(editable.blocks) == editable.layout.depth == 4
    assert not any(part in editable.layout.path for part in ("vision", "visual"))
    for block in LAYERS:
        names = editable.layout.linears(editable.model, [block])
        assert names
        assert all(name.startswith(f"{editable.layout.path}.{block}.") for name in names)


def test_every_matrix_is_adaptable_or_listed_as_unadapted(editable: EditableModel) -> None:
    layout, model = editable.layout, editable.model
    adaptable = {f"{name}.weight" for name in layout.linears(model, EDITED)}
    unadapted = layout.unadapted(model, EDITED)
    matrices = {
        f"{layout.path}.{i}.{name}": parameter.numel()
        for i in EDITED
        for name, parameter in editable.blocks[i].named_parameters()
        if parameter.dim() > 1
    }
    assert not adaptable & unadapted.keys()
    assert adaptable | unadapted.keys() == matrices.keys()
    assert all(matrices[name] == count for name, count in unadapted.items())


def test_recorded_states_are_those_of_transformers(editable: EditableModel) -> None:
    with torch.no_grad(), record_activations(editable, LAYERS) as found:
        out = editable.model(input_ids=IDS, use_cache=False, output_hidden_states=True)
    for block in LAYERS[:-1]:  # transformers' last entry is after the final norm
        assert torch.equal(found[block], out.hidden_states[block + 1])
    assert len(out.hidden_states) == len(LAYERS) + 1


def test_the_segment_equals_the_whole_model_bit_for_bit(editable: EditableModel) -> None:
    for first, last in ((1, 2), (0, 3)):
        segment = Segment(editable, first, last)
        segment.check(IDS)
        inputs = segment.capture_inputs(IDS)
        full, alone = states(editable, IDS), segment.forward(inputs, LAYERS)
        assert alone.keys() == set(range(first, last + 1))
        assert all(torch.equal(alone[block], full[block]) for block in alone)
    segment = Segment(editable, 1, 3)
    inputs = segment.capture_inputs(IDS)
    attach(editable)
    edited, alone = states(editable, IDS), segment.forward(inputs, LAYERS)
    assert all(torch.equal(alone[block], edited[block]) for block in alone)
    assert not torch.equal(edited[3], full[3])


def test_an_adapter_acts_on_the_edited_layers_and_all_of_it_has_gradients(
    editable: EditableModel,
) -> None:
    names = set(editable.layout.linears(editable.model, EDITED))
    segment = Segment(editable, 1, 2)
    inputs, base = segment.capture_inputs(IDS), states(editable, IDS)
    attach(editable)
    layers = {n for n, m in editable.model.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert layers == names
    assert torch.equal(states(editable, IDS)[0], base[0])
    segment.forward(inputs, (2,))[2].pow(2).mean().backward()
    for name, weight in adapters.parameters(editable).items():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_training_moves_states_to_their_counterparts_but_no_frozen_weight(family: Family) -> None:
    editable, segment = family.editable, Segment(family.editable, 1, 2)
    inputs, target = segment.capture_inputs(IDS), states(editable, COUNTERPARTS)[2]
    attach(editable, random=False)
    optimizer = torch.optim.Adam(adapters.parameters(editable).values(), lr=2e-2)
    losses = []
    for _ in range(12):
        found = segment.forward(inputs, (2,))[2]
        loss = normalized_mse_loss(found.flatten(0, 1), target.flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapters.detach(editable)
    after = dict(editable.model.named_parameters())
    assert after.keys() == family.weights.keys()
    assert all(torch.equal(after[n], weight) for n, weight in family.weights.items())


def test_a_saved_adapter_is_the_same_for_peft_and_merged(
    family: Family, editable: EditableModel, tmp_path: Path
) -> None:
    base = logits(editable.model)
    attach(editable)
    edited = logits(editable.model)
    assert (edited - base).abs().max() > 1e-4
    merged = adapters.merged(editable)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert torch.allclose(logits(merged), edited, atol=1e-5)
    adapters.save(editable, tmp_path)
    adapters.detach(editable)
    again = PeftModel.from_pretrained(editable.model, str(tmp_path)).eval()
    try:
        assert torch.allclose(logits(again), edited, atol=1e-6)
    finally:
        again.unload()
    assert torch.equal(logits(editable.model), base)


def test_padding_on_either_side_does_not_change_the_states_of_tokens(
    editable: EditableModel,
) -> None:
    base = states(editable, ROW[None])
    right, left, mask = IDS.clone(), IDS.clone(), torch.ones_like(IDS)
    right[0], left[0] = torch.cat([ROW, ROW.new_zeros(2)]), torch.cat([ROW.new_zeros(2), ROW])
    mask[0, :2] = 0
    segment = Segment(editable, 0, 3)
    alone = segment.forward(segment.capture_inputs(right), LAYERS)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    if editable.model.config.model_type == "qwen2_vl":  # time, height and width are equal for text
        positions = positions.expand(3, -1, -1)
    padded = states(editable, left, attention_mask=mask, position_ids=positions)
    for block in LAYERS:
        assert torch.allclose(alone[block][0, :8], base[block][0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(padded[block][0, 2:], base[block][0], rtol=1e-4, atol=1e-5)


def test_a_response_does_not_depend_on_the_other_rows(editable: EditableModel) -> None:
    prompts = [ROW.tolist(), IDS[1].tolist()]
    together = generate(editable, prompts, max_new_tokens=3)
    assert together == [generate(editable, [prompt], max_new_tokens=3)[0] for prompt in prompts]


@pytest.mark.parametrize("name", FUSED)
def test_attention_is_adapted_and_fused_experts_are_not(name: str) -> None:
    editable = tiny_editable(name)
    layout, model = editable.layout, editable.model
    experts = [n for n in layout.unadapted(model, LAYERS) if ".experts." in n]
    assert all(model.get_parameter(name).dim() == 3 for name in experts if "bias" not in name)
    assert len(experts) >= 2
    leaves = {name.rsplit(".", 1)[1] for name in layout.linears(model, LAYERS)}
    assert "o_proj" in leaves
    assert not leaves & {"gate", "router"}


def test_a_dense_layer_with_the_name_of_experts_is_unadapted() -> None:
    # PEFT would adapt the experts of every block instead.
    editable = tiny_editable("deepseek_v3")
    out = editable.layout.unadapted(editable.model, [1])
    assert out["model.layers.1.mlp.down_proj.weight"] == 32 * 64
    with pytest.raises(ModelError, match=r"ends in down_proj.*o_proj") as raised:
        attach(editable, [1], modules=("down_proj",))
    assert raised.value.code == "module-missing"


def test_a_router_that_inherits_from_linear_is_unadapted() -> None:
    editable = tiny_editable("llama4_text")
    router = editable.blocks[1].get_submodule("feed_forward.router")
    assert isinstance(router, nn.Linear)
    assert not any("router" in name for name in editable.layout.linears(editable.model, LAYERS))


def test_mamba_layers_that_are_never_called_are_unadapted() -> None:
    jamba, falcon = tiny_editable("jamba"), tiny_editable("falcon_h1")
    assert "model.layers.0.mamba.dt_proj.weight" in jamba.layout.unadapted(jamba.model, [0])
    assert "model.layers.0.mamba.out_proj.weight" in falcon.layout.unadapted(falcon.model, [0])
    assert "model.layers.0.mamba.in_proj" in falcon.layout.linears(falcon.model, [0])


def test_an_adapter_that_peft_attaches_elsewhere_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable = tiny_editable("qwen3_moe")
    monkeypatch.setattr("retouch.models.layout.adaptable", lambda _, names: list(names))
    with pytest.raises(ModelError, match="of tiny") as raised:
        attach(editable, [0])
    assert raised.value.code == "adapter-mismatch"
    assert not editable.adapted
    assert logits(editable.model).isfinite().all()


def test_states_in_several_streams_are_rejected() -> None:
    editable = tiny_editable(
        "gemma3n_text",
        head_dim=8,
        intermediate_size=[64] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=99,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    )
    with pytest.raises(ModelError, match=r"states are \[2, 4, 10, 32\]") as raised:
        Segment(editable, 1, 2).check(IDS)
    assert raised.value.code == "architecture-unsupported"
