"""What each process of tests/test_ranks.py does: edit a tiny model, and write down the adapter."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from retouch.models import adapters, distributed
from retouch.models.generate import generate
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from helpers.tiny_edit import run_training, tiny_concept, tiny_config

# Odd numbers of rows, so that the processes have unlike shares, and one has none of some batch.
WAYS = {
    "pairs": ({"labels": 7, "retain": 5, "match_prompt": True, "at_once": 1}, True),
    "responses": ({"labels": 7, "supervised_weight": 1.0}, False),
    "pushed": ({"perturb": 0.2, "layers": (0, 1), "read_layers": (1, 2)}, True),
}


def frozen_here(editable: EditableModel) -> list[int]:
    """The frozen numbers that this process has of each block."""
    return [
        sum(p.to_local().numel() for p in block.parameters() if hasattr(p, "to_local"))
        for block in editable.blocks
    ]


def edited(folder: Path, out: Path, shard: bool) -> None:
    """Edit in every way, alone or together, and write `WAY-RANK.safetensors`."""
    out.mkdir(parents=True, exist_ok=True)
    for way, (more, pairs) in WAYS.items():
        editable = load(str(folder), shard=shard)
        share = frozen_here(editable)
        prompts = [[10 + i, 11, 12][: 2 + i % 2] for i in range(5)]
        before = generate(editable, prompts, max_new_tokens=4)
        play(editable, settings(**more), tiny_concept(pairs))
        with editable.base_model():
            assert generate(editable, prompts, max_new_tokens=4) == before
        assert (
            not shard
            or distributed.world_size() < 2
            or (min(share) > 0 and frozen_here(editable) == share)
        )
        weights = {n: p.detach().clone() for n, p in adapters.parameters(editable).items()}
        save_file(weights, out / f"{way}-{distributed.rank()}.safetensors")


if __name__ == "__main__":
    distributed.init()
    assert distributed.world_size() == 2
    for kind in ("shared", "sharded"):
        edited(Path(sys.argv[1]), Path(sys.argv[2]) / kind, kind == "sharded")
    distributed.shutdown()
