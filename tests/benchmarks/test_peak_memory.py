from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from benchmarks import peak_memory
from benchmarks.common import PeakMemory, in_this_process, reset_high_water_mark


def test_peak_is_what_the_body_adds() -> None:
    before = torch.ones(8_000_000)  # 32 MB in use at the start
    garbage: list[object] = [torch.ones(32_000_000)]  # 128 MB in a cycle
    garbage.append(garbage)
    del garbage
    # Memory that was freed, and that the allocator keeps below a block in use.
    blocks = [torch.ones(6_000_000) for _ in range(8)]  # 24 MB each
    del blocks
    blocks = [torch.ones(5_000_000) for _ in range(8)]
    last = torch.ones(2_500_000)
    del blocks
    with PeakMemory(torch.device("cpu")) as peak:
        gc.collect()
        added = torch.ones(16_000_000)
        del added
    assert peak.bytes < 96e6
    if reset_high_water_mark():  # elsewhere the high-water mark of earlier tests hides it
        assert peak.bytes > 50e6
    del before, last


def test_a_model_larger_than_its_limit_is_edited() -> None:
    case = peak_memory.SMALL_LIMITED
    whole, half = peak_memory.measure_limit("cpu", in_this_process, case)
    assert whole["limit_bytes"] is None
    assert half["limit_bytes"] == half["weight_bytes"] // 2
    (target,) = peak_memory.targets_of([whole, half])
    assert target.value == half["peak_bytes"] / half["limit_bytes"]
    columns = peak_memory.LIMIT_HEADER.splitlines()[0].count("|")
    assert all(peak_memory.limit_row(one).count("|") == columns for one in (whole, half))


def test_operations_and_needed_memory_grow_with_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "STEPS", 2)
    out = tmp_path / "peak.json"
    peak_memory.main(["--small", "--only", "llama-7b", "--out", str(out)])
    written = json.loads(out.read_text("utf-8"))
    first, second = written["records"]
    assert (first["batch_size"], second["batch_size"]) == (4, 8)
    assert second["flops"] > 1.5 * first["flops"] > 0
    assert second["needed_bytes"] > first["needed_bytes"]
    (target,) = written["targets"]
    assert target["name"].startswith("small-llama-7b")


def test_the_target_is_of_the_best_used_batch_size() -> None:
    step = {"case": "a", "utilisation": 0.2, "peak_bytes": 3, "needed_bytes": 1}
    better = {"case": "a", "utilisation": 0.4, "peak_bytes": 6, "needed_bytes": 5}
    (target,) = peak_memory.targets_of([step, better])
    assert target.value == pytest.approx(1.2)
    assert target.met
