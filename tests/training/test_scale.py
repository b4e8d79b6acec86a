"""The arithmetic of docs/scale.md, at shapes that can be reckoned by hand and editable."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import scale

from retouch.core.units import size_text
from retouch.models.load import load
from helpers.tiny_models import tiny_model, tiny_tokenizer

SHAPE = (4, 64, 128, 99, 4, 2)  # blocks, hidden, mlp, vocabulary, heads, heads of keys and values
LINEAR = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, the three of the MLP
BLOCK = 2 * (LINEAR + 2 * 64)  # bytes in bfloat16, with two norms
OUTSIDE = 2 * (2 * 99 * 64 + 64)


def test_the_table_agrees_with_hand_arithmetic() -> None:
    texts = scale.safety()
    found = scale.figures(scale.built(*SHAPE), 2, 24, 8, texts)
    assert found["one block"] == BLOCK
    assert found["weights"] == 4 * BLOCK + OUTSIDE
    assert found["segment of 2 blocks"] == 2 * BLOCK
    assert found["cached: 256+100 prompts of 30 tokens"] == 356 * 30 * 64 * 2
    # Rank 8 on seven layers of two blocks, seven numbers of four bytes kept of each.
    numbers = 2 * 8 * (2 * 128 + 2 * 96 + 3 * 192)
    assert found["adapter with Adam and averages, rank 8"] == 28 * numbers
    assert found["a step: gradients added up"] == 4 * numbers
    # What is trained, one block that comes and what is outside are six tenths of the budget.
    rotary = 2 * 2 * 8  # no weights, and on the device all the same
    least = (OUTSIDE + rotary + 3 * BLOCK) / 0.6
    assert found["least --device-memory"] == pytest.approx(least, abs=1)
    shared = (
        found["training: --shard, 8 processes"] - found["activations, micro_batch of 1 row"] * 3
    )
    held = OUTSIDE + 4 * BLOCK // 8 + BLOCK + found["cached: safety's rows"] // 8 + 28 * numbers
    assert shared == pytest.approx(held, rel=1e-3)


def test_four_bits_take_what_is_said(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    tiny_model(**sizes).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    editable = load(str(tmp_path), quantize="4bit", device="cpu", dtype="bfloat16")
    held = sum(p.numel() * p.element_size() for p in editable.model.parameters())
    for module in editable.model.modules():
        if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            held += state.absmax.numel() * state.absmax.element_size()
    found = scale.figures(scale.built(*SHAPE), 2, 24, 8, scale.safety())
    assert found["weights, --quantize 4bit"] == pytest.approx(held, rel=0.01)


def test_the_command_prints_a_column_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--shape", "tiny=4,64,128,99,4,2", "--blocks", "2", "--processes", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| bfloat16 | tiny |"
    assert f"| weights | {size_text(4 * BLOCK + OUTSIDE)} |" in lines
    assert any(line.startswith("| training: --shard, 2 processes |") for line in lines)
