"""The commands that need no training: export, concept, merge, and their use of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.command_line import call, error_of
from helpers.instruction import made_concept
from retouch import pipeline
from retouch.cli.loading import resolve_base
from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, RunError
from retouch.core.metrics import Metrics
from retouch.core.options import nest
from retouch.core.run_dir import RunDir
from retouch.core.types import Record, Score
from retouch.evaluation.evaluate import Evaluation
from retouch.instruction.audit import InstructionAudit
from retouch.models import base_responses
from retouch.models.generate import Response

SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 64}
FIGURE = {"suite": "safety-probe", "metric": "refused", "unit": "rate", "better": "higher"}
SAFETY = {
    "adapter": hashlib.sha256(b"weights").hexdigest(),
    "probe": {"metrics": [FIGURE | {"before": SCORE, "after": SCORE}], "weakened": []},
}


def run_with_adapter(path: Path, config: EditConfig) -> RunDir:
    run = RunDir.create(path, config)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return run


def test_export_names_the_problem_of_a_run(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "does not exist" in error_of(call("export", str(tmp_path / "no"), "--out", out), 5)
    run = RunDir.create(tmp_path / "run", EditConfig())
    assert "--resume" in error_of(call("export", str(run.path), "--out", out), 5)
    message = error_of(call("export", str(run.path), "--out", out, "--format", "onnx"), 2)
    assert "`--format`" in message
    assert "peft, merged" in message
    assert "`--out`" in error_of(call("export", str(run.path), "--out", str(run.path)), 5)


def test_export_writes_the_adapter_and_its_card(tmp_path: Path) -> None:
    run = run_with_adapter(tmp_path / "run", EditConfig())
    (run.adapter / "README.md").write_text("PEFT's own card")
    facts = {"name": "safety", "title": "Safety", "description": "", "weakens": "lower"}
    run.write_provenance({"concept": facts, "safety": SAFETY})
    assert call("export", str(run.path), "--output-dir", str(tmp_path / "new")).exit_code == 0
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "retouch.yaml",
    }
    assert "library_name: peft" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "config.yaml", "adapter"])
def test_export_follows_no_link_out_of_the_run(tmp_path: Path, name: str) -> None:
    run = run_with_adapter(tmp_path / "run", EditConfig())
    facts = {"name": "safety", "title": "Safety", "description": ""}
    run.write_provenance({"concept": facts, "safety": SAFETY})
    target = tmp_path / "elsewhere"
    (run.path / name).rename(target)
    (run.path / name).symlink_to(target)
    command = ["export", str(run.path), "--out", str(tmp_path / "new")]
    assert "not a regular file" in error_of(call(*command), 5)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_an_adapter_is_reported(tmp_path: Path) -> None:
    assert "adapter_config.json" in error_of(call("chat", "--adapter", str(tmp_path)), 5)
    assert "adapter_config.json" in error_of(call("evaluate", "--adapter", str(tmp_path)), 5)


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_evaluate_has_no_such_split(split: str) -> None:
    message = error_of(call("evaluate", "--split", split), 2)
    assert "`--split`" in message
    assert split in message


SUITE = """name: mine
title: Questions about ferns
url: https://example.org
licence: CC0-1.0
sources:
  - {file: mine.csv}
prompt: "{question}"
scorers: [refusal]
better: lower
max_new_tokens: 3
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Write the suite `mine` beside a folder `data`; returns how much was generated.

    The prompts and the maximum length of each generation; the responses are words.
    """
    monkeypatch.chdir(tmp_path)
    rows = [f"How do I water {count} ferns?" for count in range(8)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.csv").write_text("\n".join(["question", *rows]))
    (tmp_path / "mine.yaml").write_text(SUITE)
    generated: list[tuple[int, int]] = []

    def generate(_: Any, prompts: Sequence[Any], *, max_new_tokens: int, **more: Any) -> Any:
        generated.append((len(prompts), max_new_tokens))
        return [Response("Use a can.") for _ in prompts]

    monkeypatch.setattr(base_responses, "generate_responses", generate)
    return generated


def test_evaluate_runs_tasks_alone_where_no_concept_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def run_tasks(_: Any, tasks: Sequence[str], **options: Any) -> Any:
        given.update(options, tasks=tasks)
        score = Score(0.5, 0.25, 0.75, 8)
        record = Record("lm-eval/toy", "acc", "rate", "higher", score)
        evaluation = Evaluation(Metrics([record]), [])
        return SimpleNamespace(evaluation=evaluation, warnings=("A prompt was cut.",))

    monkeypatch.setattr(pipeline, "run_tasks", run_tasks)
    flags = [
        "--tasks",
        "toy,other",
        "--num-fewshot",
        "2",
        "--include-path",
        "tasks",
        "--limit",
        "8",
    ]
    result = call("evaluate", "pocket", *flags, "--json")
    assert result.exit_code == 0, result.output
    assert [one["suite"] for one in json.loads(result.stdout)] == ["lm-eval/toy"]
    assert given["tasks"] == ["toy", "other"]
    assert (given["num_fewshot"], given["limit"]) == (2, 8)
    assert given["include_path"] == Path("tasks")


def test_options_of_a_judge_and_of_suites_need_them() -> None:
    for flags in (["--judge-format", "wildguard"], ["--data-dir", "."]):
        assert f"`{flags[0]}` needs" in error_of(call("evaluate", "pocket", *flags), 2)


def test_evaluate_measures_a_users_suite(suite: list[tuple[int, int]]) -> None:
    flags = ["--suite", "mine.yaml", "--data-dir", "data"]
    result = call("evaluate", "pocket", *flags, "--json", "--output-file", "out.json")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert json.loads(Path("out.json").read_text()) == [record]
    assert (record["suite"], record["metric"], record["better"]) == ("mine", "refusal", "lower")
    assert (record["before"]["value"], record["before"]["n"]) == (0.0, 8)
    assert record["after"] is None
    assert suite == [(8, 3)]  # with the suite's own length


def test_evaluate_measures_suites_beside_a_concept(suite: list[tuple[int, int]]) -> None:
    flags = ["--suite", "mine.yaml", "--data-dir", "data", "--concept", "pocket-capability"]
    result = call("evaluate", "pocket", *flags, "--limit", "2", "--max-new-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    counts = {record["suite"]: record["before"]["n"] for record in json.loads(result.stdout)}
    assert counts["mine"] == 2
    assert counts["capability"] == 2
    assert {length for _, length in suite} == {3, 4}
    assert (2, 3) in suite
    table = call("evaluate", "pocket", *flags, "--limit", "2")
    assert table.exit_code == 0, table.output
    assert "mine" in table.stdout
    assert "task accuracy" in table.stdout


@pytest.mark.usefixtures("suite")
def test_evaluate_names_the_problem_of_a_suite() -> None:
    message = error_of(call("evaluate", "pocket", "--suite", "advbenhc"), 3)
    assert "`advbench`?" in message
    message = error_of(call("evaluate", "pocket", "--suite", "mine.yaml"), 3)
    assert "mine.csv" in message
    assert "`--data-dir`" in message
    message = error_of(call("evaluate", "pocket", "--suite", "mine.yaml", "--data-dir", "no"), 3)
    assert "`--data-dir`" in message
    Path("mine.yaml").write_text(SUITE.replace("better", "beter"))
    message = error_of(call("evaluate", "pocket", "--suite", "mine.yaml", "--data-dir", "data"), 3)
    assert "`better`" in message


def test_a_wrong_option_is_named() -> None:
    for command in ("evaluate", "chat", "robustness"):
        assert "`--dtype`" in error_of(call(command, "pocket", "--dtype", "int3"), 2)
    for command in (["compare", "pocket"], ["tune", "pocket", "--method", "retouch"]):
        assert "`--direction`" in error_of(call(*command, "--direction", "up"), 2)
    message = error_of(call("compare", "pocket", "--num-examples", "8,many"), 2)
    assert "`--num-examples`" in message
    assert "8,many" in message


@pytest.mark.parametrize("arguments", [["compare", "--seeds", "1"], ["tune", "--method", "none"]])
def test_compare_and_tune_need_a_model(arguments: list[str]) -> None:
    assert "MODEL is missing" in error_of(call(*arguments), 2)


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_an_interrupted_comparison_tells_how_to_continue(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"retouch.comparison.{command}.{command}", interrupt)
    result = call(command, "pocket", *(("--method", "retouch") if command == "tune" else ()))
    assert result.exit_code == 130
    assert "The same command continues" in result.stderr
    assert "Traceback" not in result.output


def test_concepts_are_listed_and_displayed() -> None:
    listed = call("concept", "list")
    assert listed.exit_code == 0, listed.output
    for name in ("pocket-safety", "pocket-truthfulness", "pocket-gender-bias", "pocket-tone"):
        assert name in listed.output
    output = call("concept", "show", "pocket-safety").output
    for part in ("For the model pocket.", "attack", "weakens safety", "retain", "SHA-256"):
        assert part in output
    assert call("concept", "check", "pocket-safety").exit_code == 0
    assert "absent" in error_of(call("concept", "show", "absent"), 3)


def test_the_check_of_a_concept_reports_errors(tmp_path: Path) -> None:
    examples = [
        {"prompt": f"Is {i} {label}?", "label": label, "split": split, "entity": "cat"}
        for split in ("train", "validation", "test")
        for label in ("positive", "negative")
        for i in range(12)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, examples)))
    result = call("concept", "check", str(file))
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.output
    assert "error" in result.stdout or result.stderr.startswith("Error: ")


def test_the_base_of_a_run_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    config = EditConfig(
        model="m",
        load={
            "revision": "v1",
            "chat_template": "own.jinja",
            "quantize": "4bit",
            "max_device_memory": "8GiB",
            "trust_remote_code": True,
            "device": "cuda:3",
            "dtype": "float16",
        },
    )
    run = run_with_adapter(tmp_path / "run", config)
    run.chat_template.write_text("{{ messages }}")
    for folder in (run.path, run.adapter):
        found, base = resolve_base({"model": "m"}, folder)
        assert found == run.adapter
        load = base.load
        assert (load.revision, load.chat_template, load.quantize) == (
            *("v1", str(run.chat_template), "4bit"),
        )
        # The device, the dtype, and whether code runs are the caller's.
        assert (load.device, load.dtype, load.max_device_memory) == ("auto", "auto", None)
        assert not load.trust_remote_code
    given = {"model": "m", **nest({"load.quantize": "none", "load.revision": "v2"})}
    _, base = resolve_base(given, run.path)
    assert (base.load.quantize, base.load.revision) == ("none", "v2")
    run.chat_template.unlink()
    with pytest.raises(RunError) as error:
        resolve_base({"model": "m"}, run.path)
    assert error.value.code == "chat-template-missing"


def test_the_template_variables_of_a_run_are_used_again(tmp_path: Path) -> None:
    recorded = {"chat_template_kwargs": {"brief": True}, "chat_template_time": "2024-02-05"}
    run = run_with_adapter(tmp_path / "run", EditConfig(model="m", load=recorded))
    _, base = resolve_base({"model": "m"}, run.path)
    assert base.load.chat_template_kwargs == {"brief": True}
    assert base.load.chat_template_time == "2024-02-05"
    given = {"model": "m", "load": {"chat_template_kwargs": {"brief": False}}}
    _, base = resolve_base(given, run.path)
    assert base.load.chat_template_kwargs == {"brief": False}


def test_the_model_of_an_adapter_is_given_by_the_caller(tmp_path: Path) -> None:
    run = run_with_adapter(tmp_path / "run", EditConfig(model="other/model"))
    with pytest.raises(ConfigError, match="MODEL is missing") as error:
        resolve_base({}, run.path)
    assert "'other/model'" in error.value.hint


def test_a_model_that_is_given_does_not_get_the_options_of_the_run(tmp_path: Path) -> None:
    run = run_with_adapter(tmp_path / "run", EditConfig(model="m", load={"quantize": "4bit"}))
    _, base = resolve_base({"model": "other"}, run.path)
    assert (base.model, base.load.quantize) == ("other", "none")
    folder, base = resolve_base({}, None)
    assert (folder, base.model) == (None, "pocket")


def test_the_chat_template_of_a_model_from_memory_is_that_of_the_run(tmp_path: Path) -> None:
    run = run_with_adapter(tmp_path / "run", EditConfig(model="m"))
    run.chat_template.write_text("{{ messages }}")
    _, base = resolve_base({"model": "m"}, run.path)
    assert base.load.chat_template == str(run.chat_template)


@pytest.mark.parametrize(
    ("names", "options", "exit_code", "part"),
    [
        ("ab", [], 2, "same model"),
        ("aa", ["--weights", "1"], 2, "`--weights`"),
        ("aa", ["--weights", "1,much"], 2, "1,much"),
        ("aa", [], 5, "no adapter"),
        ("c", [], 5, "not a run directory"),
    ],
)
def test_merge_reports_runs_that_cannot_be_merged(
    tmp_path: Path, names: str, options: list[str], exit_code: int, part: str
) -> None:
    for name, model in (("a", "pocket"), ("b", "other")):
        RunDir.create(tmp_path / name, EditConfig(model=model))
    runs, out = [str(tmp_path / name) for name in names], tmp_path / "out"
    command = ["merge", *runs, "--model", "pocket", "--out", str(out), *options]
    assert part in error_of(call(*command), exit_code)
    assert not out.exists()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model that makes a concept; returns the arguments that it was called with."""
    from retouch.instruction import build

    received: dict[str, Any] = {}

    def make(model: Any, instruction: str, **options: Any) -> tuple[Concept, InstructionAudit]:
        received.update(options, model=model, instruction=instruction)
        return made_concept(instruction)

    monkeypatch.setattr(build, "concept_from_instruction", make)
    return received


def test_concept_create_writes_a_pack_with_its_audit(tmp_path: Path, made: dict[str, Any]) -> None:
    out, prompts = tmp_path / "short", tmp_path / "prompts.txt"
    flags = ["--instruction", "Use one word.", "--out", str(out), "--prompts", str(prompts)]
    result = call("concept", "create", "--model", "pocket", *flags, "--num-prompts", "40")
    assert result.exit_code == 0, result.output
    assert "words: at most 1" in result.stdout
    assert "audit.md" in result.stdout
    assert (made["model"], made["instruction"]) == ("pocket", "Use one word.")
    assert (made["prompts"], made["num_prompts"]) == (prompts, 40)
    assert {file.name for file in out.iterdir()} >= {"concept.yaml", "audit.md", "audit.json"}
    assert "`--out`" not in error_of(call("concept", "create", "pocket", *flags), 5)


def test_concept_create_needs_a_model(tmp_path: Path) -> None:
    flags = ("--instruction", "Use one word.", "--out", str(tmp_path / "x"))
    assert "MODEL is missing" in error_of(call("concept", "create", *flags), 2)


def test_pocket_follows_no_instruction(tmp_path: Path) -> None:
    flags = ("--out", str(tmp_path / "x"), "--num-prompts", "20", "--max-new-tokens", "16")
    result = call("concept", "create", "pocket", "--instruction", "Answer in French.", *flags)
    assert result.exit_code == 3
    message = result.stderr.partition("Error: ")[2]  # behind the progress
    assert "does not follow the instruction" in message
    assert "in French" in message


@pytest.mark.parametrize("name", ["mine.txt", ".", ""])
def test_tune_checks_where_it_saves_before_it_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("retouch.comparison.tune.tune", pytest.fail)
    (tmp_path / "mine.txt").write_text("a user's file")
    message = error_of(call("tune", "pocket", "--method", "lorra", "--save", name), 5)
    assert "no earlier output" in message
    assert (tmp_path / "mine.txt").read_text() == "a user's file"
