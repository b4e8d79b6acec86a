from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.common import (
    Case,
    case_prompts,
    examples_of,
    in_new_process,
    in_this_process,
    llama,
    sample_prompts,
)
from helpers.tiny_models import tiny_editable
from retouch.methods.are_original import labelled_prompts
from retouch.models.segment import Segment

FIELDS = {
    "case",
    "variant",
    "seconds",
    "samples_per_second",
    "peak_bytes",
    "ratio_to_original",
}
TINY = Case(
    "tiny",
    (1, 2),
    (1, 2),
    llama(4, 32, 64, 64, 4),
    prompts=8,
    tests=4,
    batch_size=4,
    rounds=2,
    discriminator_epochs=2,
)
IDS = torch.arange(6, 46).reshape(4, 10)


def test_all_segment_kinds_have_the_same_states() -> None:
    editable = tiny_editable()
    by_kind = []
    for kind in (Segment, speed.WholeModel, speed.TruncatedModel):
        segment = kind(editable, 1, 2)
        by_kind.append(segment.forward(segment.capture_inputs(IDS), (1, 2)))
        by_kind.append(segment.forward_states(IDS, (1, 2)))
    for states in by_kind[1:]:
        assert states.keys() == by_kind[0].keys()
        assert all(torch.equal(states[layer], by_kind[0][layer]) for layer in states)


def test_gradients_flow_through_all_segment_kinds_but_not_when_states_are_read() -> None:
    editable = tiny_editable()
    editable.model.requires_grad_(True)
    for kind in (Segment, speed.WholeModel, speed.TruncatedModel):
        segment = kind(editable, 1, 2)
        assert segment.forward(segment.capture_inputs(IDS), (2,))[2].requires_grad
        assert not segment.forward_states(IDS, (2,))[2].requires_grad


def test_truncated_model_stops_after_the_last_read_layer_and_leaves_no_hook() -> None:
    editable = tiny_editable()
    calls: list[int] = []
    handle = editable.blocks[3].register_forward_hook(lambda *_: calls.append(3))
    truncated = speed.TruncatedModel(editable, 1, 2)
    truncated.forward(truncated.capture_inputs(IDS), (2,))
    assert not calls
    handle.remove()
    assert all(not block._forward_hooks for block in editable.blocks)


def test_every_variant_runs_all_rounds_and_changes_the_loss() -> None:
    for name in ("original", "segment"):
        editable = TINY.load("cpu")
        timing = speed.VARIANTS[name](editable, TINY, case_prompts(TINY, editable))
        assert len(timing.rounds) == len(timing.losses) == TINY.rounds
        assert timing.losses[1] != timing.losses[0]
        assert timing.seconds == timing.setup + sum(timing.rounds)
    editable = TINY.load("cpu")
    timing = speed.sft_steps(editable, TINY, case_prompts(TINY, editable))
    assert len(timing.rounds) == 1


def test_variants_have_the_same_prompts_and_train_on_no_response() -> None:
    prompts = sample_prompts(TINY, 64)
    ids, labels = labelled_prompts(examples_of(prompts.source, prompts.target))
    assert len(prompts.trained) == len(ids) == 8
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4
    assert {tuple(one[0].tolist()) for one in ids} == {
        chat.ids[: chat.start] for chat in prompts.trained
    }
    assert all(len(chat.ids) == chat.start + 1 for chat in prompts.trained)


def test_variants_have_the_same_amount_of_work() -> None:
    method, original = TINY.method, speed.original_settings(TINY)
    assert TINY.steps == method.train.steps_per_round == 4
    assert method.discriminator.warmup_steps == method.discriminator.steps_per_round == 2
    assert method.train.learning_rate == original.learning_rate
    assert method.train.rounds == original.rounds == TINY.rounds
    assert method.lora.r == original.r
    assert method.lora.lora_alpha == original.lora_alpha
    assert method.lora.target_modules == original.target_modules
    assert method.discriminator.hidden_size == original.hidden_size
    assert method.discriminator.learning_rate == original.discriminator_learning_rate
    large = replace(TINY, prompts=65)
    batches = -(-large.prompts // original.discriminator_batch_size)
    epochs = large.discriminator_epochs
    assert large.method.discriminator.warmup_steps == epochs * batches == 4


def test_ratios_are_of_one_run_and_the_losses_agree() -> None:
    lines: list[str] = []
    records = speed.measure_case(TINY, "cpu", in_this_process, show=lines.append)
    assert [record["variant"] for record in records] == list(speed.VARIANTS)
    assert all(record.keys() >= FIELDS for record in records)
    by_name = {record["variant"]: record for record in records}
    for name in ("original", "full", "truncated", "segment"):
        record = by_name[name]
        assert record["rounds"] == 2
        assert record["ratio_to_original"] == by_name["original"]["seconds"] / record["seconds"]
        assert record["samples_per_second"] == pytest.approx(2 * 2 * 8 / record["seconds"])
    segment, full = by_name["segment"], by_name["full"]
    assert segment["ratio_to_full"] == full["seconds"] / segment["seconds"]
    assert by_name["sft-step"]["ratio_to_original"] is None
    assert len(lines) == len(records)
    assert all(row.count("|") == speed.HEADER.splitlines()[0].count("|") for row in lines)
    assert segment["losses"] == pytest.approx(full["losses"], rel=1e-3)


def test_different_losses_of_equivalent_variants_stop_the_benchmark() -> None:
    record = {"case": "tiny", "variant": "full", "losses": [1.0, 0.5]}
    same = {**record, "variant": "segment"}
    assert "full 0.500000" in speed.check_losses([record, same], 1e-3)
    for loss in (0.6, float("nan")):
        with pytest.raises(ValueError, match="should compute the same"):
            speed.check_losses([record, {**same, "losses": [1.0, loss]}], 1e-3)


def test_a_variant_runs_in_a_new_process() -> None:
    measurement = in_new_process(speed.measure, replace(TINY, rounds=1), "segment", "cpu")
    assert measurement.runs == 3
    assert len(measurement.best.rounds) == 1


def test_models_of_all_depths_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "DEPTH_ROUNDS", 2)
    monkeypatch.setattr(speed, "llama", lambda layers, *_: llama(layers, 32, 64, 64, 4))
    records = speed.measure_depths("cpu", (4, 6))
    assert [record["variant"] for record in records] == ["4 layers", "6 layers"]
    assert all(record.keys() >= FIELDS and 0 < record["seconds"] < 10 for record in records)


def test_targets_are_computed_from_the_records() -> None:
    deep = {"case": "deep", "variant": "segment", "ratio_to_original": 30.0, "ratio_to_full": 3.0}
    steps = [
        {"case": "depth", "variant": f"{depth} layers", "seconds": seconds}
        for depth, seconds in ((16, 2), (64, 2.1))
    ]
    assert [target.met for target in speed.targets_of([deep, *steps])] == [True, False, True]
    assert not list(speed.targets_of([]))


def test_small_models_run_the_gpu_cases_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "LOG_ROUNDS", 4)
    out = tmp_path / "deep" / "speed.json"
    words = ["--small", "--only", "llama-7b,log,rate", "--variants", "original,segment"]
    speed.main([*words, "--out", str(out)])
    written = json.loads(out.read_text("utf-8"))
    assert all(record.keys() >= FIELDS for record in written["records"])
    cases = {record["case"] for record in written["records"]}
    name = "small-llama-7b"
    assert cases == {name, f"{name}-log", f"{name}-rate"}
    (log,) = (one for one in written["records"] if one["case"].endswith("-log"))
    assert log["rounds"] == 4
    (rate,) = (one for one in written["records"] if one["case"].endswith("-rate"))
    # Twice two products of at least 8 tokens in each of the two layers' MLPs, forward and backward.
    assert rate["flops"] > 2 * 2 * 2 * 2 * 8 * 64 * 128
    assert 0 < rate["rate"] < rate["matrix_rate"]
    names = [target["name"] for target in written["targets"]]
    assert names == [
        "the log's work, s",
        f"{name}-rate: training steps, of a matrix product's rate",
    ]


def test_an_unknown_case_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        speed.main(["--only", "pocket,shallow"])
    assert ended.value.code == 2
    assert "'shallow'" in capsys.readouterr().err
