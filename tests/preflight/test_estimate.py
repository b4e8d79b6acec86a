"""Time, streaming and disk space of an edit."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from helpers.preflight import estimate_of, only_error, preflight, with_code
from retouch.preflight import estimate

SEGMENT = {"lora.layers_to_transform": (4, 5), "discriminator.layers": (5,)}
LAYER = 37_120  # bytes of a layer of the tiny model


def streamed(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """The streamed bytes by phase."""
    report = preflight(folder, {"load.max_device_memory": "400KB", **settings})
    return {phase.name: phase.streamed_bytes for phase in estimate_of(report).phases}


def test_streamed_bytes_are_those_of_the_forward_passes(deep: Path) -> None:
    small = {
        "data.num_examples": 8,
        "data.num_retain": 8,
        "train.batch_size": 8,
        "train.rounds": 3,
    }
    given: dict[str, Any] = {**SEGMENT, **small}
    phases = streamed(deep, given)
    assert phases["training"] == 0
    streaming = estimate_of(preflight(deep, {"load.max_device_memory": "400KB", **given})).streaming
    assert streaming is not None
    below = len({*range(4)} - {*streaming.resident})
    # Source, counterparts, target and retain set run up to the segment.
    assert phases["activation cache"] == 4 * below * LAYER
    assert phases["base responses"] % (32 * 12 * LAYER) == 0  # one pass per generated token
    # After each of three more rounds, and at four more strengths.
    one = {**given, "train.strengths": (1.0,)}
    fewer, more = streamed(deep, one), streamed(deep, {**one, "train.rounds": 6})
    rounds, strengths = (part["validation"] - fewer["validation"] for part in (more, phases))
    assert rounds / 3 == strengths / 4 > 0
    longer = streamed(deep, {**given, "data.max_new_tokens": 64})
    assert longer["base responses"] >= 2 * phases["base responses"]
    # Without given layers, causal patching finds them.
    assert "causal patching" not in phases
    assert streamed(deep, small)["causal patching"] == 14 * 12 * LAYER
    # A loss of the logits keeps the layers up to them on the device.
    logits = {**given, "lora.layers_to_transform": (8, 9), "discriminator.layers": (9,)}
    phases = streamed(deep, {**logits, "loss.sft_weight": 1.0})
    assert phases["training"] == phases["validation"] == 0 < phases["validation cache"]
    whole = estimate_of(preflight(deep))
    assert not any(phase.streamed_bytes for phase in whole.phases)


def test_the_time_of_streaming_is_added(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SEGMENT, "load.max_device_memory": "300KB"}
    report = preflight(deep, settings)
    fast = estimate_of(report)
    monkeypatch.setattr(estimate, "DISK_SPEED", estimate.DISK_SPEED / 1000)
    slow = estimate_of(preflight(deep, settings))
    assert fast.streaming is not None
    assert fast.seconds is not None
    assert slow.seconds is not None
    added = 999 * fast.streaming.total_bytes / fast.streaming.bytes_per_second
    assert slow.seconds - fast.seconds == pytest.approx(added)
    finding = with_code(report, "layers-streamed")
    assert "an assumption" in finding.message
    assert "base responses" in finding.hint  # the phase that streams most


def test_a_full_disk_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    error = only_error(preflight(folder))
    assert error.code == "disk-full"
    assert "`output_dir`" in error.hint
