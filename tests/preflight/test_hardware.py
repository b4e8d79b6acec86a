"""The hardware of this machine, and a device that does not support a dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from helpers.preflight import only_error, preflight
from retouch.cli.app import app
from retouch.preflight import check, hardware


def test_pocket_can_be_edited_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["doctor", "pocket", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["hardware"]["flops_per_second"] > 1e8
    assert 1 < values["estimate"]["seconds"] < 3600
    assert values["estimate"]["phases"][-1]["name"] == "evaluation"


def test_a_missing_device_is_an_error(folder: Path) -> None:
    error = only_error(preflight(folder, {"load.device": "nonsense"}))
    assert error.code == "device-missing"
    assert "`cpu`" in error.hint


def test_an_unsupported_dtype_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError('"addmm_impl" not implemented for Half')

    monkeypatch.setattr(hardware, "_matmul_flops", fail)
    monkeypatch.setattr(check, "measure_hardware", hardware.measure_hardware)
    error = only_error(preflight(folder, {"load.dtype": "float16"}))
    assert error.code == "dtype-unsupported"
    assert "`dtype`" in error.hint


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    measured = hardware.measure_hardware(torch.device("cuda:0"), torch.bfloat16)
    assert not measured.is_cpu
    assert 0 < measured.free_bytes <= torch.cuda.get_device_properties(0).total_memory
    assert measured.flops_per_second > 1e11
    assert measured.bytes_per_second > measured.upload_bytes_per_second > 1e8
