"""`retouch doctor`: what is recognised, what is foreseen, what stops; no weights are editable."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig
from typer.testing import CliRunner, Result

from retouch import diagnosis
from retouch.cli.app import app
from retouch.core.config import EditConfig
from retouch.core.units import size_text
from retouch.models.layout import find_layout
from retouch.models.load import load
from retouch.preflight import skeleton as sketching
from retouch.preflight.check import Diagnosis, examine
from retouch.preflight.checkpoint_files import look_at_folder, look_at_listing
from retouch.preflight.fit import memory_fits
from retouch.preflight.hardware import Machine
from retouch.preflight.memory import Memory
from test_placement import BLOCK
from helpers.tiny_models import tiny_model, tiny_tokenizer

CPU = Machine(torch.device("cpu"), "cpu (1 thread)", 2**33, 2**33, 1e11, 1e10)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is the same everywhere; one test measures the real one."""
    monkeypatch.setattr(diagnosis, "measure", lambda where, kind: CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def call(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments), "--measure", "nothing"])


def look(model: Path | str, **settings: Any) -> Diagnosis:
    return examine(EditConfig(model=str(model), measure="nothing", **settings))


def held(found: Diagnosis) -> Memory:
    assert found.outlook is not None
    return found.outlook.memory


def roomy(monkeypatch: pytest.MonkeyPatch, free: int, device: str = "cpu", ram: int = 0) -> None:
    """Let the machine's device have so many bytes."""
    label = torch.device(device)
    there = replace(CPU, device=label, label=device, free=free, ram=ram or free)
    monkeypatch.setattr(diagnosis, "measure", lambda where, kind: there)


def said(found: Diagnosis, about: str, level: str = "note") -> str:
    """What was found about something, of one level."""
    return " ".join(
        f"{f.message} {f.hint}" for f in found.findings if (f.about, f.level) == (about, level)
    )


def stopped(found: Diagnosis, about: str) -> str:
    """The one thing that stops the edit, with its hint."""
    (stop,) = found.stops
    assert stop.about == about
    assert stop.hint
    return f"{stop.message} {stop.hint}"


def test_a_good_folder_would_run(folder: Path) -> None:
    result = call(folder)
    assert result.exit_code == 0, result.output
    for part in ("LlamaForCausalLM", "4 blocks", "The edit would run.", "adapter, Adam", "judge"):
        assert part in result.output
    found = look(folder)
    assert found.numbers == sum(p.numel() for p in tiny_model().parameters())
    assert found.layers is not None
    assert (found.layers.adapted, found.layers.read) == ((0, 1, 2, 3), (2, 3))
    assert "patching once the weights are editable" in found.layers.why
    assert held(found).weights == 4 * found.numbers
    assert held(found).peak < 2**30
    assert found.seconds is not None


def test_json_is_for_scripts(folder: Path) -> None:
    result = call(folder, "--json", "--layers", "1,2", "--read_layers", "2", "--rank", "4")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["runs"] is True
    assert values["layers"]["adapted"] == [1, 2]
    assert values["memory"]["peak"] <= values["memory_budget"]
    assert next(part["name"] for part in values["phases"]) == "base responses"
    # The blocks are named, so that nothing is left to be found by patching.
    assert "causal patching" not in [part["name"] for part in values["phases"]]
    (folder / "model.safetensors").unlink()
    result = call(folder, "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["runs"] is False
    assert values["findings"][0]["level"] == "stop"


def test_pocket_would_run_on_the_real_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["doctor", "pocket", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["machine"]["rate"] > 1e8
    assert 1 < values["seconds"] < 3600
    assert values["phases"][-1]["name"] == "measurement"


def test_a_wrong_option_is_a_usage_error() -> None:
    for options in (("--layers", "3,x"), ("--direction", "up"), ("--device-memory", "much")):
        result = call("pocket", *options)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("Error: ")
    assert call("pocket", "--concept", "absent").exit_code == 3


# The files.


def test_weights_that_are_not_there_stop(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in stopped(look(folder), "weights")
    result = call(folder)
    assert result.exit_code == 1
    assert "One thing would stop the edit." in result.output


def test_pickled_weights_stop(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "save_pretrained" in stopped(look(folder), "weights")


def test_a_shard_that_is_missing_or_cut_short_stops(sharded: Path) -> None:
    assert not look(sharded).stops
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-10])
    told = stopped(look(sharded), "weights")
    assert first.name in told
    assert "cut short" in told
    first.write_bytes(whole[:20])
    assert "within its header" in stopped(look(sharded), "weights")
    first.write_bytes(whole)
    second.unlink()
    assert f"missing {second.name}, of" in stopped(look(sharded), "weights")


def test_an_index_that_names_what_is_not_in_its_file_stops(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.extra.weight"] = sorted(index["weight_map"].values())[0]
    file.write_text(json.dumps(index))
    assert "lacks model.extra.weight" in stopped(look(sharded), "weights")
    file.write_text("{")
    assert "index" in stopped(look(sharded), "weights")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\x03\x04 a zip and no safetensors", "no safetensors"),
        (struct.pack("<Q", 2) + b"[]", "does not parse"),
        (struct.pack("<Q", 32) + b'{"a": {"data_offsets": [0, 0]}}  ', "does not parse"),
        (b"", "no safetensors"),
    ],
)
def test_a_file_that_is_no_safetensors_stops(folder: Path, content: bytes, told: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert told in stopped(look(folder), "weights")


def test_weights_of_a_smaller_model_stop(folder: Path, tmp_path: Path) -> None:
    tiny_model(num_hidden_layers=2).save_pretrained(tmp_path / "small")
    shutil.copy(tmp_path / "small" / "model.safetensors", folder)
    assert "at random" in stopped(look(folder), "weights")


def test_what_the_hub_lists_is_enough_to_see_what_is_missing() -> None:
    parts: dict[str, int | None] = {f"model-0000{i}-of-00003.safetensors": 10 for i in (1, 2, 3)}
    parts["model.safetensors.index.json"] = 1
    assert look_at_listing(parts).whole
    assert look_at_listing(parts).size == 30
    del parts["model-00002-of-00003.safetensors"]
    assert "missing 1, of 3 files" in look_at_listing(parts).findings[0].message
    assert "pickled" in look_at_listing({"pytorch_model.bin": 3}).findings[0].message
    assert look_at_listing({"model.safetensors": 7, "consolidated.safetensors": 7}).size == 7


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (found,) = look_at_folder(folder).findings
    assert "adapter" in found.message
    assert look(folder).stops


# The architecture and the tokenizer.


def rewrite(folder: Path, name: str = "config.json", **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_code_that_comes_with_the_model_is_not_run(folder: Path) -> None:
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    rewrite(folder, model_type="own", auto_map=code)
    (folder / "own.py").write_text("raise SystemExit('run')")
    assert "--trust-remote-code" in str(look(folder).stops)


def test_an_architecture_that_nobody_knows_stops(folder: Path) -> None:
    rewrite(folder, model_type="strange")
    found = look(folder)
    assert found.stops[0].about == "architecture"
    assert "transformers" in found.stops[0].hint


def test_a_configuration_that_does_not_hold_together_stops(folder: Path) -> None:
    rewrite(folder, hidden_size=33)
    told = look(folder).stops[0]
    assert told.about == "architecture"
    assert "not a multiple" in told.message
    (folder / "config.json").write_text("{")
    assert "JSON" in look(folder).stops[0].message


def test_a_layout_that_is_not_found_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retouch.core.errors import ModelError

    def lost(model: Any) -> Any:
        raise ModelError("It has two lists of blocks.", "It is not supported yet.")

    monkeypatch.setattr(sketching, "find_layout", lost)
    assert "two lists" in stopped(look(folder), "blocks")


def test_a_quantised_checkpoint_is_named(folder: Path) -> None:
    rewrite(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    told = [f.message for f in look(folder).findings if f.about == "quantised"]
    assert "gptq, 4 bit" in told[0]


def test_a_tokenizer_that_does_not_load_stops(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    assert "tokenizer's files" in stopped(look(folder), "tokenizer")


def test_a_tokenizer_of_another_model_stops(folder: Path) -> None:
    tiny_model(vocab_size=50).save_pretrained(folder)
    assert "99 tokens, the model embeds 50" in stopped(look(folder), "tokenizer")


def test_without_a_chat_template_there_is_a_note(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    found = look(folder)
    assert not found.stops
    assert [f.level for f in found.findings if f.about == "tokenizer"] == ["note"]


def test_a_template_that_refuses_the_chats_stops(folder: Path) -> None:
    for file in folder.glob("chat_template*"):
        file.unlink()
    rewrite(folder, "tokenizer_config.json", chat_template="{{ raise_exception('No turns.') }}")
    assert "No turns." in stopped(look(folder), "tokenizer")


def test_what_no_adapter_reaches_is_counted(folder: Path, tmp_path: Path) -> None:
    assert "reach" not in said(look(folder), "layers")
    mixture = tiny_model("mixtral", num_local_experts=4)
    mixture.save_pretrained(tmp_path / "mixture")
    tiny_tokenizer().save_pretrained(tmp_path / "mixture")
    found = look(tmp_path / "mixture", layers=(1, 2), read_layers=(2,))
    assert not found.stops
    blocks = find_layout(mixture).blocks(mixture)[1:3]
    every = sum(p.numel() for block in blocks for p in block.parameters())
    experts = 2 * (4 * 3 * 32 * 64 + 4 * 32)  # with their routers
    told = said(found, "layers")
    assert f"{experts:,} of the {every:,} numbers" in told
    assert "mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate." in told


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_of_a_model_that_sees_the_text_side_is_looked_at(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = look(tmp_path)
    assert not found.stops
    assert found.architecture.endswith("ForConditionalGeneration")
    assert found.blocks == 4
    assert found.numbers == sum(p.numel() for p in model.parameters())


def test_a_model_that_writes_no_text_stops(folder: Path) -> None:
    from transformers import CLIPVisionConfig

    CLIPVisionConfig(hidden_size=16, num_attention_heads=2).save_pretrained(folder)
    assert "writes no text" in look(folder).stops[0].message


def test_a_chat_template_of_ones_own_is_tried(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ raise_exception('Nothing.') }}")
    assert "does not work" in stopped(look(folder, chat_template=str(own)), "tokenizer")
    for file in folder.glob("chat_template*"):
        file.unlink()
    assert "--chat-template" in said(look(folder), "tokenizer")
    own.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert not said(look(folder, chat_template=str(own)), "tokenizer")


# The edit.


def test_forced_rows_and_an_adversary_are_reckoned_with(folder: Path) -> None:
    plain, forced = look(folder), look(folder, forced=4, forced_rows=2)
    assert held(forced).cached > 1.5 * held(plain).cached
    assert any("--tamper" in f.message for f in look(folder, tamper=3).findings)


def test_blocks_and_modules_that_are_not_there_stop(folder: Path) -> None:
    assert "blocks 0 to 3" in stopped(look(folder, layers=(9,)), "layers")
    assert "--read_layers" in stopped(look(folder, layers=(3,), read_layers=(1,)), "layers")
    assert "q_proj" in stopped(look(folder, modules=("nowhere",)), "layers")


def test_a_concept_without_rows_or_without_a_reason_stops(folder: Path) -> None:
    assert "both classes" not in str(look(folder).findings)
    assert "labels" in stopped(look(folder, source="absent"), "concept")
    assert "--allow-weakening" in stopped(look(folder, direction="lower"), "safety")
    assert not look(folder, direction="lower", allow_weakening="a test").stops


def test_a_device_that_is_not_there_stops(folder: Path) -> None:
    assert "--device cpu" in stopped(look(folder, device="nonsense"), "device")


def test_a_type_that_the_device_does_not_compute_in_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: Any) -> float:
        raise RuntimeError('"addmm_impl" not implemented for Half')

    monkeypatch.setattr(machine, "_matrix_rate", refuse)
    monkeypatch.setattr(diagnosis, "measure", machine.measure)
    assert "--dtype" in stopped(look(folder, dtype="float16"), "device")


def test_too_little_memory_stops_and_says_what_would_make_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = held(look(folder))
    roomy(monkeypatch, whole.peak + 1)
    (close,) = [f for f in look(folder).findings if f.about == "memory"]
    assert close.level == "note"
    roomy(monkeypatch, whole.weights + whole.beside // 4)
    assert "with --device-memory" in stopped(look(folder), "memory")
    few: dict[str, Any] = {"labels": 32, "retain": 32}  # so that responseing is not what takes most
    whole = held(look(folder, **few))
    roomy(monkeypatch, whole.weights + whole.beside // 2)
    told = stopped(look(folder, **few), "memory")
    rows = int(re.findall(r"with --at-once (\d+) \(", told)[0])
    # What it names is what then fits.
    assert rows < 32
    assert not look(folder, at_once=rows, **few).stops
    roomy(monkeypatch, 1000)
    told = stopped(look(folder), "memory")
    assert "weights alone" in told
    assert "a smaller model" in told
    responseing = Memory(1000, 900, 100, 100, 500, 10)
    assert "--response-tokens" in memory_fits(responseing, 1500).hint


def test_a_gpu_halves_what_runs_at_once_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = held(look(folder))
    roomy(monkeypatch, whole.weights + whole.beside // 4, "cuda:0", 2**33)
    found = look(folder)
    assert not found.stops
    assert "fewer rows at once by itself" in said(found, "memory")
    assert "--at-once" in said(found, "memory")


def test_a_smaller_batch_takes_less(folder: Path) -> None:
    def step(batch: int, **more: Any) -> int:
        return held(look(folder, batch=batch, **more)).activations

    assert step(32) == pytest.approx(4 * step(8), rel=0.01)
    assert step(32, at_once=8) == step(8)


def test_weights_for_a_gpu_pass_the_machines_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy(monkeypatch, 2**33, "cuda:0", 1000)
    assert "machine's memory first" in stopped(look(folder), "memory")
    # Quantised weights go straight to the device.
    assert not look(folder, quantize="4bit").stops


def test_states_beyond_the_memory_lie_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held(look(folder)).on_disk == 0
    small = look(folder, cache_memory="100KB")
    assert held(small).cached == 100_000
    assert held(small).on_disk == held(look(folder)).cached - 100_000
    assert "of states lie in a file" in said(small, "disk")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9 * ("tmp" not in str(path)))
    )
    roomy(monkeypatch, 2**33, "cuda:0")
    assert held(look(folder, cache_memory="100KB")).in_memory == 100_000


def test_options_that_exclude_each_other_stop(folder: Path) -> None:
    told = stopped(look(folder, device_memory="1GiB", quantize="8bit"), "options")
    assert "Leave one of them out." in told
    assert "memory and time are those of one" in said(look(folder, shard=True), "memory")


# Blocks that come by, and weights in fewer bits.


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A model of which most lies in its twelve blocks, 37,120 bytes each."""
    tiny_model(num_hidden_layers=12).save_pretrained(tmp_path / "deep")
    tiny_tokenizer().save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


def test_what_comes_by_is_what_the_edit_loads_so(deep: Path) -> None:
    config = EditConfig(
        model=str(deep), layers=(4, 5), read_layers=(5,), device_memory="300KB", measure="nothing"
    )
    found = examine(config)
    assert found.outlook is not None
    streaming = found.outlook.streaming
    assert streaming is not None
    editable = load(str(deep), device="cpu", device_memory=300_000)
    editable.keep_on_device([4, 5])
    assert editable.offload_plan is not None
    assert held(found).weights == editable.offload_plan.weights
    assert streaming.stay == tuple(sorted(editable.offload_plan.resident))
    assert {4, 5} <= set(streaming.stay) < set(range(12))
    assert streaming.origin == editable.offload_plan.origin == "disk"
    assert streaming.size == (12 - len(streaming.stay)) * BLOCK
    assert f"{len(streaming.stay)} of 12 blocks stay" in said(found, "memory")
    assert "the checkpoint's files" in said(found, "memory")


def test_how_much_comes_by_is_what_the_forward_passes_take(deep: Path) -> None:
    def parts(**more: Any) -> dict[str, int]:
        ahead = look(deep, device_memory="400KB", **more).outlook
        assert ahead is not None
        return {part.phase.name: part.phase.streamed for part in ahead.phases}

    fixed = {
        "layers": (4, 5),
        "read_layers": (5,),
        "labels": 8,
        "retain": 8,
        "batch": 8,
        "rounds": 3,
    }
    found = parts(**fixed)
    assert found["discriminators"] == found["adapter"] == 0
    ahead = look(deep, device_memory="400KB", **fixed).outlook
    assert ahead is not None
    assert ahead.streaming is not None
    away = {*range(12)} - {*ahead.streaming.stay}
    below = sum(i < 4 for i in away)
    # Source, their counterparts, target and what is held run up to the segment; and the check of it.
    assert found["dataset"] == ((4 + 2) * below + 2 * len(away)) * BLOCK
    assert found["base responses"] % (32 * 12 * BLOCK) == 0  # a pass for each token of a batch
    assert parts(**fixed | {"rounds": 6})["judge"] == 2 * found["judge"]
    assert parts(**fixed | {"response_tokens": 64})["base responses"] >= 2 * found["base responses"]
    patched = parts(labels=8, retain=8)
    assert patched["causal patching"] == 14 * 12 * BLOCK
    assert found["adapter"] < parts(**fixed, supervised_weight=1.0)["adapter"]
    whole = look(deep).outlook
    assert whole is not None
    assert not any(part.phase.streamed for part in whole.phases)


def test_the_time_of_what_comes_by_is_added(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    settings: dict[str, Any] = {"device_memory": "300KB", "layers": (4, 5), "read_layers": (5,)}
    fast = look(deep, **settings)
    monkeypatch.setattr(outlook, "FROM_DISK", outlook.FROM_DISK / 1000)
    slow = look(deep, **settings)
    assert fast.outlook is not None
    assert fast.outlook.streaming is not None
    assert fast.seconds is not None
    assert slow.seconds is not None
    taken = fast.outlook.streaming.all / fast.outlook.streaming.speed
    assert slow.seconds - fast.seconds == pytest.approx(999 * taken)
    assert "an assumption" in said(fast, "memory")
    assert "base responses" in said(slow, "memory")  # what takes most of it


def test_a_limit_in_which_not_even_the_segment_fits_stops(deep: Path) -> None:
    told = stopped(look(deep, device_memory="9KiB"), "memory")
    assert "9.0 KiB is too little" in told
    assert "at least" in told
    everything = look(deep, device_memory="300KB", layers=tuple(range(12)), read_layers=(11,))
    assert "12 blocks that are trained" in stopped(everything, "memory")


def test_a_limit_in_which_all_fits_brings_nothing_by(folder: Path) -> None:
    found = look(folder, device_memory="1GiB")
    assert found.outlook is not None
    assert found.outlook.streaming is None
    assert found.outlook.budget == 2**30
    assert held(found).weights == pytest.approx(4 * found.numbers, rel=0.001)  # and its buffers


def test_weights_in_fewer_bits_are_foreseen(folder: Path) -> None:
    whole, eight, four = (look(folder, quantize=q) for q in ("none", "8bit", "4bit"))
    assert held(four).weights < held(eight).weights < held(whole).weights
    assert "export --format merged" in said(four, "quantised")
    assert "In 4 bits the weights take" in said(four, "quantised")


def test_without_bitsandbytes_quantising_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retouch.models import weights

    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    assert "bitsandbytes" in stopped(look(folder, quantize="4bit"), "quantised")


def test_a_full_disk_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    assert "--out" in stopped(look(folder), "disk")


def test_what_is_neither_folder_nor_id_stops(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "two words", "a/b/c"):
        assert "no folder" in stopped(look(name), "model")


def test_a_hub_that_cannot_be_reached_stops() -> None:
    assert "Connect" in stopped(look("nobody/nothing-here"), "model")


def test_a_hub_model_that_is_in_the_cache_needs_no_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    cached = str(folder / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: cached)
    assert not look("somebody/something").stops
    (folder / "model.safetensors").unlink()
    assert "not all in the cache" in stopped(look("somebody/something"), "model")


def test_what_would_be_downloaded_needs_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = look_at_listing({"model.safetensors": 10**15})
    known = sketching.load_skeleton(str(folder), dtype=torch.float32)
    afar = replace(known, local=None, shards=shards)
    monkeypatch.setattr(diagnosis, "load_skeleton", lambda *_, **__: afar)
    assert "HF_HOME" in stopped(look("somebody/something"), "disk")


# Large models.


@pytest.fixture
def seventy(tmp_path: Path) -> Iterator[Path]:
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


def hollow(folder: Path, shards: int) -> None:
    """CheckpointFiles as long as their headers progress, with holes for weights: they take no disk."""
    per, names = 70_553_706_496 // shards, {}
    for i in range(shards):
        name, tensor = f"model-{i + 1:05}-of-{shards:05}.safetensors", f"part.{i}"
        names[tensor] = name
        entry = {"dtype": "BF16", "shape": [per], "data_offsets": [0, 2 * per]}
        header = json.dumps({tensor: entry}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 2 * per)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_seventy_billion_parameters_are_answered_for_in_seconds(
    seventy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.process_time()
    hollow(seventy, 4)
    config = EditConfig(model=str(seventy), dtype="bfloat16", measure="nothing")
    roomy(monkeypatch, 80 * 2**30)
    found = examine(config)
    assert time.process_time() - began < 30
    assert found.numbers == 70_553_706_496
    assert found.layers is not None
    assert found.layers.read == (40, 41)
    told = stopped(found, "memory")
    assert "131 GiB" in told
    assert "80.0 GiB" in told
    assert "--dtype" not in told
    # Each way out is one, and takes what is said.
    for option in ({"quantize": "8bit"}, {"device_memory": "80GiB"}):
        ((name, value),) = option.items()
        way = examine(config.model_copy(update=option))
        assert not way.stops
        assert f"with --{name.replace('_', '-')} {value} ({size_text(held(way).peak)}" in told
    roomy(monkeypatch, 320 * 2**30)
    found = examine(config)
    assert not found.stops
    assert found.seconds is not None
    assert found.seconds > 3600


def test_without_its_shards_the_rest_is_still_foreseen(
    seventy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy(monkeypatch, 2**40)
    config = EditConfig(model=str(seventy), dtype="bfloat16", measure="own")
    found = examine(config)
    assert "no weights" in stopped(found, "weights")
    assert held(found).weights == 2 * 70_553_706_496


def test_both_tables_fit_a_terminal(folder: Path) -> None:
    from retouch.cli import doctor

    console = Console(width=80, highlight=False)
    with console.capture() as shown:
        found = look(folder)
        assert found.outlook is not None
        console.print(doctor._foreseen(found.outlook, found.seconds))
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("weights" in line and "base responses" in line for line in lines)
