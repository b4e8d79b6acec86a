from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.steering_task import IDS, logits
from helpers.tiny_models import tiny_editable
from retouch.methods.steering import normalize, residual_writers, scale_direction
from retouch.models.adapters import detach, merged, save
from retouch.models.hooks import record_activations

WRITERS = {
    "gpt2": {"attn.c_proj", "mlp.c_proj"},
    "gpt_neox": {"attention.dense", "mlp.dense_4h_to_h"},
    "opt": {"self_attn.out_proj", "fc2"},
}


def random_direction() -> torch.Tensor:
    return normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"],
)
def test_scaled_weights_are_those_of_the_equation(family: str) -> None:
    editable = tiny_editable(family)
    r = random_direction()
    names = residual_writers(editable)
    suffixes = {name.removeprefix(editable.layout.path).split(".", 2)[2] for name in names}
    assert suffixes == WRITERS.get(family, {"self_attn.o_proj", "mlp.down_proj"})
    assert len(names) == 2 * editable.layout.depth
    before = {name: editable.model.get_submodule(name).weight.clone() for name in names}
    for c in (-1.0, 2.5):
        scale_direction(editable, r, c)
        model = merged(editable)
        for name in names:
            weight, scaled = before[name], model.get_submodule(name).weight
            if family == "gpt2":
                weight, scaled = weight.T, scaled.T
            expected = (torch.eye(32) + c * torch.outer(r, r)) @ weight
            torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=1e-4)
        detach(editable)


def test_an_ablated_model_writes_nothing_along_the_direction(tmp_path: Path) -> None:
    from peft import PeftModel

    editable = tiny_editable()
    r = random_direction()
    scale_direction(editable, r, -1.0)
    with record_activations(editable, range(4)) as states:
        ablated = logits(editable)
    embedded = editable.model.get_input_embeddings()(IDS)
    for layer in range(4):
        along = (states[layer] - embedded) @ r  # the sum of what the blocks have written
        assert float(along.abs().max()) < 1e-5
    # Merging and saving keep it.
    torch.testing.assert_close(merged(editable)(input_ids=IDS).logits, ablated)
    save(editable, tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_editable().model, str(tmp_path))
    torch.testing.assert_close(reloaded(input_ids=IDS).logits, ablated)
