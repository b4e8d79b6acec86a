"""Merging runs: the sum of their edits as one adapter, and the checks before a model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import retouch
from helpers.pocket_edit import small_settings
from retouch import merging
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, RunError
from retouch.core.run_dir import RunDir
from retouch.models.load import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_settings({"train.rounds": 1, "evaluation.suites": "none"})
    folder = tmp_path_factory.mktemp("runs") / "safety"
    return retouch.edit(concept="pocket-safety", config=config, output_dir=folder).path


def logits(adapter: Path | None) -> torch.Tensor:
    editable = load("pocket", adapter=adapter)
    ids = editable.tokenizer("How do I hack a bank?", return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = editable.model(**ids).logits
    return found


def test_the_sum_is_measured_beside_each_edit_and_written(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    result = merging.merge(
        [run, other],
        tmp_path / "sum",
        [0.5, 0.5],
        model="pocket",
        limit=2,
        load_config=LoadConfig(device="cpu"),
    )
    assert result.path == tmp_path / "sum"
    assert list(result.metrics) == [str(run), str(other), merging.MERGED]
    for records in result.metrics.values():
        assert records[-1].metric == "kl_per_token"
        assert all(record.after is not None for record in records)
    assert result.overlaps == [[pytest.approx(1.0)] * 2] * 2  # it is the same update
    # Half of an edit twice is the edit.
    assert torch.allclose(logits(tmp_path / "sum"), logits(run), atol=1e-4)
    assert not torch.allclose(logits(run), logits(None), atol=1e-4)


def test_the_checks_precede_the_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        merging.merge([run], tmp_path / "sum", [1.0, 2.0], model="pocket")
    assert raised.value.code == "weights-count"
    with pytest.raises(RunError):
        merging.merge([run], run, model="pocket")
    other = tmp_path / "other"
    RunDir.create(other, retouch.EditConfig(model="other"))
    with pytest.raises(ConfigError) as raised:
        merging.merge([run, other], tmp_path / "sum", model="pocket")
    assert raised.value.code == "models-differ"
    with pytest.raises(ConfigError, match="edits 'pocket'"):
        merging.merge([run], tmp_path / "sum", model="other")
    assert not (tmp_path / "sum").exists()
