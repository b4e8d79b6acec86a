"""`retouch doctor` and its report: complete edits, wrong options, and models of any size."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoConfig
from typer.testing import CliRunner, Result

from helpers.any_model import ANY_SAFETY
from helpers.preflight import (
    codes,
    estimate_of,
    only_error,
    preflight,
    set_hardware,
    with_code,
)
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.cli import doctor
from retouch.cli.app import app
from retouch.core.config_file import explicit, resolve
from retouch.preflight.check import run_preflight

PARAMETERS = 70_553_706_496


def call(*arguments: Path | str) -> Result:
    options = ("--concept", ANY_SAFETY, "--suites", "none")
    return CliRunner().invoke(app, ["doctor", *options, *map(str, arguments)])


def test_a_complete_folder_can_be_edited(folder: Path) -> None:
    result = call(folder)
    assert result.exit_code == 0, result.output
    for part in (
        "LlamaForCausalLM",
        "4 layers",
        "The edit can run.",
        "adapter, Adam",
        "validation",
    ):
        assert part in result.output
    report = preflight(folder)
    assert report.num_parameters == sum(p.numel() for p in tiny_model().parameters())
    assert report.layers is not None
    assert (report.layers.adapted, report.layers.read) == ((0, 1, 2, 3), (2, 3))
    assert "patching after loading" in report.layers.reason
    assert report.trainable_parameters > 0
    estimate = estimate_of(report)
    assert estimate.memory.weights == 4 * report.num_parameters
    assert estimate.memory.peak < 2**30
    assert estimate.seconds is not None
    assert {"examples", "weights-complete", "memory-fits"} <= codes(report)


def test_the_report_is_printed_as_json(folder: Path) -> None:
    layers = ("--layers-to-transform", "1,2", "--discriminator-layers", "2")
    result = call(folder, "--json", *layers, "--r", "4")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["runs"] is True
    assert values["layers"]["adapted"] == [1, 2]
    estimate = values["estimate"]
    assert estimate["memory"]["peak"] <= estimate["available"]
    names = [phase["name"] for phase in estimate["phases"]]
    assert names[0] == "base responses"
    assert "causal patching" not in names  # the layers are given
    assert estimate["seconds"] == pytest.approx(sum(one["seconds"] for one in estimate["phases"]))
    (folder / "model.safetensors").unlink()
    result = call(folder, "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["runs"] is False
    assert values["findings"][0]["level"] == "error"


def test_errors_are_counted(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    result = call(folder)
    assert result.exit_code == 1
    assert "1 error prevents the edit." in result.output


def test_a_wrong_option_is_a_usage_error() -> None:
    for options in (
        ("--layers-to-transform", "3,x"),
        ("--direction", "up"),
        ("--max-device-memory", "much"),
    ):
        result = call("pocket", *options)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("Error: ")
    assert call("pocket", "--concept", "absent").exit_code == 3


def test_both_tables_fit_a_terminal(folder: Path) -> None:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(doctor._estimate_tables(estimate_of(preflight(folder))))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("weights" in line and "base responses" in line for line in lines)


def test_the_finetuning_adversary_is_not_estimated(folder: Path) -> None:
    report = preflight(folder, {"adversary.finetune_steps": 3})
    assert with_code(report, "adversary-not-estimated").level == "warning"


def test_missing_layers_and_modules_are_errors(folder: Path) -> None:
    error = only_error(preflight(folder, {"lora.layers_to_transform": (9,)}))
    assert error.code == "layer-missing"
    assert "layers 0 to 3" in error.hint
    above = {"lora.layers_to_transform": (3,), "discriminator.layers": (1,)}
    assert only_error(preflight(folder, above)).code == "layer-not-trained"
    error = only_error(preflight(folder, {"lora.target_modules": ("nowhere",)}))
    assert error.code == "module-missing"
    assert "q_proj" in error.hint


def test_missing_examples_and_a_missing_reason_are_errors(folder: Path) -> None:
    error = only_error(preflight(folder, {"data.source_filter": "absent"}))
    assert error.code == "examples-missing"
    assert only_error(preflight(folder, {"direction": "lower"})).code == "weakening"
    given = {"direction": "lower", "allow_weakening": "a test"}
    assert not preflight(folder, given).errors


def test_texts_that_are_too_long_are_a_warning(folder: Path) -> None:
    report = preflight(folder, {"data.max_new_tokens": 300})
    assert with_code(report, "text-too-long").level == "warning"


def locks(path: Path, text: str) -> Path:
    """A concept file with one long prompt, in its line 4, of the training split."""
    rows = [{"prompt": f"lock {i}", "chosen": f"no {i}", "rejected": "sure"} for i in range(12)]
    rows[3]["prompt"] = text
    for i, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[i // 3]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_a_text_beyond_the_context_is_an_error_with_its_line(folder: Path, tmp_path: Path) -> None:
    path = locks(tmp_path / "locks.jsonl", "pick a lock " * 9000)
    error = with_code(preflight(folder, {"concept": str(path)}), "text-too-long")
    assert error.level == "error"
    assert f"{path}, line 4 (" in error.message
    report = preflight(folder, {"concept": str(locks(path, "pick a lock"))})
    assert "text-too-long" not in codes(report)
    assert "TRL preference" in with_code(report, "columns-mapped").message


# Large models.


@pytest.fixture
def seventy(tmp_path: Path) -> Path:
    """The configuration of a model of 70 billion parameters, and a tokenizer; no weights."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def write_sparse_shards(folder: Path, num_files: int) -> None:
    """Files as long as their headers say, with holes for weights, which take no disk space."""
    per_file, names = PARAMETERS // num_files, {}
    for i in range(num_files):
        name, tensor = f"model-{i + 1:05}-of-{num_files:05}.safetensors", f"part.{i}"
        names[tensor] = name
        entry = {"dtype": "BF16", "shape": [per_file], "data_offsets": [0, 2 * per_file]}
        header = json.dumps({tensor: entry}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 2 * per_file)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_seventy_billion_parameters_are_estimated_in_seconds(
    seventy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.process_time()
    write_sparse_shards(seventy, 4)
    set_hardware(monkeypatch, 80 * 2**30)
    given = {
        "load.dtype": "bfloat16",
        "lora.layers_to_transform": (38, 39, 40, 41),
        "discriminator.layers": (40, 41),
    }
    report = preflight(seventy, given)
    assert time.process_time() - began < 30
    assert report.num_parameters == PARAMETERS
    assert report.layers is not None
    assert report.layers.read == (40, 41)
    error = only_error(report)
    assert error.code == "memory-exceeded"
    assert "131 GiB" in error.message
    assert "80.0 GiB available" in error.message
    suggestions = estimate_of(report).suggestions
    loads = [{"quantize": "8bit"}, {"max_device_memory": "80GiB"}]
    assert [one.settings for one in suggestions] == [{"load": load} for load in loads]
    for suggestion in suggestions:
        assert str(suggestion) in error.hint
        fixed = run_preflight(resolve(explicit(report.config), suggestion.settings))
        assert not fixed.errors
        assert estimate_of(fixed).memory.peak == suggestion.peak
    set_hardware(monkeypatch, 320 * 2**30)
    report = preflight(seventy, given)
    assert not report.errors
    assert (estimate_of(report).seconds or 0) > 3600


def test_without_weights_the_rest_is_estimated(
    seventy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hardware(monkeypatch, 2**40)
    settings = {"load.dtype": "bfloat16", "evaluation.suites": "concept"}
    report = preflight(seventy, settings)
    assert only_error(report).code == "weights-missing"
    assert estimate_of(report).memory.weights == 2 * PARAMETERS
