"""Hardware and checkpoints of the preflight tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.preflight import CPU
from helpers.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from retouch.preflight import check


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that is the same everywhere; one test measures the real one."""
    monkeypatch.setattr(check, "measure_hardware", lambda *_: CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete checkpoint of four layers."""
    return save_tiny(tmp_path / "model")


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A checkpoint of twelve layers, which have most of its parameters."""
    tiny_model(num_hidden_layers=12).save_pretrained(tmp_path / "deep")
    tiny_tokenizer().save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"
