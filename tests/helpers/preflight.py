"""Run the preflight check on hardware that is the same everywhere, and find its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.any_model import ANY_SAFETY
from retouch.core.config_file import resolve
from retouch.core.finding import Finding
from retouch.core.options import nest
from retouch.preflight import check
from retouch.preflight.check import PreflightReport, run_preflight
from retouch.preflight.estimate import Estimate
from retouch.preflight.hardware import Hardware

CPU = Hardware("cpu", "cpu (1 thread)", 2**33, 2**33, 1e11, 1e10, 1e10)


def preflight(model: Path | str, settings: Mapping[str, Any] | None = None) -> PreflightReport:
    """The report of an edit without evaluation; `settings` by dotted path.

    The edit is read at the states alone, so that only the segment up to the last read layer runs.
    """
    values: dict[str, Any] = {
        "model": str(model),
        "concept": ANY_SAFETY,
        "evaluation.suites": "none",
        "data.num_retain": 256,
        "data.prefill_tokens": 0,
        "data.max_new_tokens": 32,
        "data.max_base_tokens": 32,
        "lora.r": 8,
        "train.rounds": 8,
        "train.steps_per_round": 8,
        "train.batch_size": 32,
        "train.retain_batch_size": 32,
        "loss.sft_weight": 0.0,
        "loss.kl_weight": 0.0,
    }
    values |= settings or {}
    return run_preflight(resolve(nest(values)))


def estimate_of(report: PreflightReport) -> Estimate:
    """The report's estimate, which must exist."""
    assert report.estimate is not None
    return report.estimate


def with_code(report: PreflightReport, code: str) -> Finding:
    """The only finding with a code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding


def codes(report: PreflightReport) -> set[str]:
    """The codes of all findings."""
    return {finding.code for finding in report.findings}


def only_error(report: PreflightReport) -> Finding:
    """The only error, which must have a hint."""
    (error,) = report.errors
    assert error.hint
    return error


def set_hardware(
    monkeypatch: pytest.MonkeyPatch, free: int, device: str = "cpu", host_free: int | None = None
) -> None:
    """Set the free memory that is measured."""
    hardware = replace(
        CPU, device=device, label=device, free_bytes=free, host_free_bytes=host_free or free
    )
    monkeypatch.setattr(check, "measure_hardware", lambda *_: hardware)
