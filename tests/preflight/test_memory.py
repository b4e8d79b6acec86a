"""The memory plan, what exceeds it, and the settings that are suggested then."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from helpers.preflight import (
    codes,
    estimate_of,
    only_error,
    preflight,
    set_hardware,
    with_code,
)
from retouch.core.config import LoadConfig
from retouch.core.config_file import explicit, resolve
from retouch.models.load import load
from retouch.preflight.check import PreflightReport, run_preflight
from retouch.preflight.memory import MemoryPlan, Suggestion

SEGMENT = {"lora.layers_to_transform": (4, 5), "discriminator.layers": (5,)}


def memory_of(report: PreflightReport) -> MemoryPlan:
    return estimate_of(report).memory


def with_suggestion(report: PreflightReport, suggestion: Suggestion) -> PreflightReport:
    return run_preflight(resolve(explicit(report.config), suggestion.settings))


def test_prefill_examples_are_cached_too(folder: Path) -> None:
    prefills = {"data.prefill_tokens": 4, "data.prefills_per_example": 2}
    plain, more = preflight(folder), preflight(folder, prefills)
    assert memory_of(more).cached_states > 1.5 * memory_of(plain).cached_states


def test_log_probabilities_that_a_divergence_needs_are_cached_too(folder: Path) -> None:
    def states(**values: float) -> int:
        settings = {"data.num_retain": 32, "loss.kl_weight": 0.0}
        settings |= {f"loss.{name}": value for name, value in values.items()}
        return memory_of(preflight(folder, settings)).cached_states

    bare = states()
    kept = states(kl_weight=1.0) - bare
    position = 2 * load(str(folder)).model.config.vocab_size
    assert kept == 32 * (32 + 1) * position  # responses of 32 tokens and their end
    assert states(kl_weight=2.0) - bare == kept
    assert states(distillation_weight=1.0) > bare


def test_a_plan_close_to_the_limit_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_code(preflight(folder), "memory-fits").level == "ok"
    set_hardware(monkeypatch, memory_of(preflight(folder)).peak + 1)
    assert with_code(preflight(folder), "memory-tight").level == "warning"


def test_every_suggestion_fits_as_estimated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few examples, so that training and not generation takes most of the memory.
    few = {"data.num_examples": 32, "data.num_retain": 32, "data.max_new_tokens": 8}
    whole = memory_of(preflight(folder, few))
    set_hardware(monkeypatch, whole.weights + whole.beside_weights // 2)
    report = preflight(folder, few)
    error = only_error(report)
    assert error.code == "memory-exceeded"
    suggestions = estimate_of(report).suggestions
    assert suggestions
    assert any(
        [*one.settings] == ["train"] and one.settings["train"]["micro_batch_size"] < 32
        for one in suggestions
    )
    for suggestion in suggestions:
        assert str(suggestion) in error.hint
        fixed = with_suggestion(report, suggestion)
        assert not fixed.errors
        assert memory_of(fixed).peak == suggestion.peak
        assert any(one.code == "layers-streamed" for one in fixed.findings) == suggestion.streams


def test_an_offload_limit_is_suggested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory_of(preflight(folder))
    set_hardware(monkeypatch, whole.weights + whole.beside_weights // 4)
    assert "`max_device_memory`" in only_error(preflight(folder)).hint


def test_weights_that_exceed_the_memory_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hardware(monkeypatch, 1000)
    error = only_error(preflight(folder))
    assert error.code == "memory-exceeded"
    assert "weights alone" in error.message
    assert "a smaller model" in error.hint


def test_the_hint_names_what_generation_depends_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "evaluation.suites": "concept",
        "data.num_retain": 32,
        "train.batch_size": 4,
        "train.retain_batch_size": 4,
    }
    whole = memory_of(preflight(folder, settings))
    assert whole.generation > whole.training
    set_hardware(monkeypatch, whole.peak - 1)
    assert "`max_new_tokens`" in only_error(preflight(folder, settings)).hint


def test_on_a_gpu_the_micro_batch_is_halved_automatically(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = memory_of(preflight(folder))
    set_hardware(monkeypatch, whole.weights + whole.beside_weights // 4, "cuda:0", 2**33)
    report = preflight(folder)
    assert not report.errors
    assert "`micro_batch_size`" in with_code(report, "micro-batch-reduced").hint


def test_a_smaller_batch_needs_less_memory(folder: Path) -> None:
    def activations(batch_size: int, micro: int | None = None) -> int:
        sizes = {"train.batch_size": batch_size, "train.micro_batch_size": micro}
        return memory_of(preflight(folder, sizes)).activations

    assert activations(32) == pytest.approx(4 * activations(8), rel=0.01)
    assert activations(32, 8) == activations(8)


def test_weights_for_a_gpu_are_loaded_through_host_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hardware(monkeypatch, 2**33, "cuda:0", 1000)
    assert only_error(preflight(folder)).code == "host-memory-exceeded"
    # Quantised weights are loaded to the device directly.
    assert not preflight(folder, {"load.quantize": "4bit"}).errors


def test_cached_states_beyond_the_limit_are_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = memory_of(preflight(folder))
    assert whole.disk_states == 0
    limit = {"train.activation_cache": "100KB"}
    report = preflight(folder, limit)
    assert memory_of(report).cached_states == 100_000
    assert memory_of(report).disk_states == whole.cached_states - 100_000
    assert with_code(report, "states-on-disk").level == "warning"
    usage = namedtuple("usage", "total used free")
    full_tmp = lambda path: usage(10**9, 0, 10**9 * ("tmp" not in str(path)))  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", full_tmp)
    assert "disk-full" in {one.code for one in preflight(folder, limit).errors}
    set_hardware(monkeypatch, 2**33, "cuda:0")
    assert memory_of(preflight(folder, limit)).host_states == 100_000


def test_exclusive_options_are_an_error(folder: Path) -> None:
    settings = {"load.max_device_memory": "1GiB", "load.quantize": "8bit"}
    assert only_error(preflight(folder, settings)).code == "options-exclusive"
    assert "fsdp-not-estimated" in codes(preflight(folder, {"load.fsdp": True}))


def test_the_plan_under_a_limit_is_that_of_the_loaded_model(deep: Path) -> None:
    report = preflight(deep, {**SEGMENT, "load.max_device_memory": "300KB"})
    streaming = estimate_of(report).streaming
    assert streaming is not None
    editable = load(str(deep), LoadConfig(device="cpu", max_device_memory="300KB"))
    editable.keep_on_device([4, 5])
    plan = editable.offload_plan
    assert plan is not None
    assert memory_of(report).weights == plan.weights
    assert streaming.resident == tuple(sorted(plan.resident))
    assert {4, 5} <= set(streaming.resident) < set(range(12))
    assert streaming.source == plan.source == "disk"
    assert streaming.layer_bytes == sum(plan.streamed_bytes)
    message = with_code(report, "layers-streamed").message
    assert f"{len(streaming.resident)} of 12 layers stay" in message
    assert "the checkpoint's files" in message


def test_a_limit_below_the_segment_is_an_error(deep: Path) -> None:
    error = only_error(preflight(deep, {"load.max_device_memory": "9KiB"}))
    assert error.code == "device-limit-too-low"
    assert "9.0 KiB is too low" in error.message
    assert "at least" in error.hint
    every: dict[str, Any] = {
        "lora.layers_to_transform": tuple(range(12)),
        "discriminator.layers": (11,),
        "load.max_device_memory": "300KB",
    }
    assert "12 trained layers" in only_error(preflight(deep, every)).message


def test_a_limit_above_the_model_streams_nothing(folder: Path) -> None:
    report = preflight(folder, {"load.max_device_memory": "1GiB"})
    assert estimate_of(report).streaming is None
    assert estimate_of(report).available == 2**30
    # The buffers are counted too.
    assert memory_of(report).weights == pytest.approx(4 * report.num_parameters, rel=0.001)


def test_quantised_weights_take_less(folder: Path) -> None:
    reports = [preflight(folder, {"load.quantize": kind}) for kind in ("none", "8bit", "4bit")]
    whole, eight, four = (memory_of(report).weights for report in reports)
    assert four < eight < whole
    finding = with_code(reports[2], "weights-quantized")
    assert "4bit" in finding.message
    assert "unquantised" in finding.hint


def test_quantising_without_bitsandbytes_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retouch.models import weights

    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    error = only_error(preflight(folder, {"load.quantize": "4bit"}))
    assert error.code == "library-missing"
    assert "bitsandbytes" in error.message
