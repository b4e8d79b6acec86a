from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retouch.models.activation_cache import ActivationCache


def test_tensors_beyond_the_limit_are_on_disk_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = ActivationCache(torch.device("cpu"), 10**6)
    torch.manual_seed(0)
    states = [torch.randn(100, 600).to(dtype) for dtype in (torch.float32, torch.bfloat16)] * 6
    cached = [cache.put({"h": (one, one)}) for one in states]
    assert cache.in_memory <= 10**6
    assert cache.on_disk >= 10**6
    assert cache.in_memory + cache.on_disk == 6 * 100 * 600 * (4 + 2)  # each tensor once
    for get, one in zip(cached, states, strict=True):
        assert torch.equal(get()["h"][0], one)
        assert get()["h"][1].dtype == one.dtype
    assert not list(tmp_path.iterdir())  # the file has no name and is deleted with the process
