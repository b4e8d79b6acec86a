"""The arithmetic of docs/scale.md, at shapes that can be computed by hand and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scale
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig
from retouch.core.units import size_text
from retouch.models.load import load

SHAPE = (4, 64, 128, 99, 4, 2)  # layers, hidden, mlp, vocabulary, heads, key-value heads
LINEAR = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, the three of the MLP
LAYER = 2 * (LINEAR + 2 * 64)  # bytes in bfloat16, with two norms
OUTSIDE = 2 * (2 * 99 * 64 + 64)


def estimate() -> dict[str, int]:
    return scale.estimate_bytes(scale.build_model(*SHAPE), 2, 24, 8, scale.safety_lengths())


def test_the_table_agrees_with_hand_arithmetic() -> None:
    found = estimate()
    assert found["one layer"] == LAYER
    assert found["weights"] == 4 * LAYER + OUTSIDE
    assert found["segment of 2 layers"] == 2 * LAYER
    assert found["cached: 256+100 prompts of 30 tokens"] == 356 * 30 * 64 * 2
    # Rank 16 on seven layers of two blocks, seven values of four bytes for each parameter.
    parameters = 2 * 16 * (2 * 128 + 2 * 96 + 3 * 192)
    adapter = 28 * parameters
    assert found["adapter with Adam, EMA and best checkpoint, rank 16"] == adapter
    assert found["per step: reduced gradients"] == 4 * parameters
    # Trained layers, one streamed layer and the weights outside take six tenths of the limit.
    rotary = 2 * 2 * 8  # buffers, which are on the device too
    lowest = (OUTSIDE + rotary + 3 * LAYER) / 0.6
    assert found["lowest --max-device-memory"] == pytest.approx(lowest, abs=1)
    sharded = found["training: --fsdp, 8 processes"] - 3 * found["activations, micro-batch of 1"]
    weights = OUTSIDE + 4 * LAYER // 8 + LAYER
    cached = found["cached: examples of safety"] // 8
    assert sharded == pytest.approx(weights + cached + adapter, rel=1e-3)


def test_the_size_in_4_bits_is_that_of_a_loaded_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    tiny_model(**sizes).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = LoadConfig(quantize="4bit", device="cpu", dtype="bfloat16")
    editable = load(str(tmp_path), config)
    size = sum(p.numel() * p.element_size() for p in editable.model.parameters())
    for module in editable.model.modules():
        if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            size += state.absmax.numel() * state.absmax.element_size()
    assert estimate()["weights, --quantize 4bit"] == pytest.approx(size, rel=0.01)


def test_the_command_prints_a_column_for_each_shape(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--shape", "tiny=4,64,128,99,4,2", "--layers", "2", "--processes", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| bfloat16 | tiny |"
    assert f"| weights | {size_text(4 * LAYER + OUTSIDE)} |" in lines
    assert any(line.startswith("| training: --fsdp, 2 processes |") for line in lines)
