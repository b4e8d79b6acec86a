"""A process of tests/models/test_distributed.py: edit a tiny model and write the adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from helpers.tiny_edit import run_training, tiny_concept, tiny_config
from retouch.core.config import LoadConfig
from retouch.models import adapters, distributed
from retouch.models.editable_model import EditableModel
from retouch.models.generate import generate
from retouch.models.load import load

# Odd numbers of examples: the processes get different shares, and one has none of some batch.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "pairs": (
        {
            "data.num_examples": 7,
            "data.num_retain": 5,
            "loss.match_prompt_suffix": True,
            "train.micro_batch_size": 1,
        },
        True,
    ),
    "responses": ({"data.num_examples": 7, "loss.sft_weight": 1.0}, False),
    "latent-attack": (
        {
            "adversary.latent_epsilon": 0.2,
            "lora.layers_to_transform": (0, 1),
            "discriminator.layers": (1, 2),
        },
        True,
    ),
}


def local_parameters(editable: EditableModel) -> list[int]:
    """The number of sharded parameters of each layer that this process holds."""
    return [
        sum(p.to_local().numel() for p in block.parameters() if hasattr(p, "to_local"))
        for block in editable.blocks
    ]


def run_edits(folder: Path, out: Path, fsdp: bool) -> None:
    """Run the edit of every variant and write `VARIANT-RANK.safetensors`."""
    out.mkdir(parents=True, exist_ok=True)
    for variant, (overrides, pairs) in VARIANTS.items():
        editable = load(str(folder), LoadConfig(fsdp=fsdp))
        shares = local_parameters(editable)
        prompts = [[10 + i, 11, 12][: 2 + i % 2] for i in range(5)]
        before = generate(editable, prompts, max_new_tokens=4)
        run_training(editable, tiny_config(overrides), tiny_concept(pairs))
        with editable.base_model():
            assert generate(editable, prompts, max_new_tokens=4) == before
        if fsdp:
            assert min(shares) > 0
            assert local_parameters(editable) == shares
        weights = {n: p.detach().clone() for n, p in adapters.parameters(editable).items()}
        save_file(weights, out / f"{variant}-{distributed.rank()}.safetensors")


if __name__ == "__main__":
    distributed.init()
    assert distributed.world_size() == 2
    for name in ("replicated", "sharded"):
        run_edits(Path(sys.argv[1]), Path(sys.argv[2]) / name, fsdp=name == "sharded")
    distributed.shutdown()
