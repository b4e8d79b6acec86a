"""`retouch edit` and `retouch demo`, with a pipeline that takes no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import retouch
from helpers.command_line import call, error_of
from helpers.instruction import made_concept
from retouch.cli import demo
from retouch.concepts.concept import Concept, DirectionSpec, MetricSpec
from retouch.core.config import EditConfig
from retouch.core.config_file import read_config_file, resolve
from retouch.core.errors import DivergedError, RunError
from retouch.core.run_dir import RunDir, check_free, next_free
from retouch.core.types import Message, Record, RoundEvent, Sample, Score, StageEvent
from retouch.evaluation.outcome import Outcome

RECORD = Record(
    "safety",
    "attack_refusal",
    "rate",
    "higher",
    Score(0.1, 0, 0.2, 50),
    Score(0.9, 0.8, 1, 50),
)


class FakeResult:
    """The parts of an `EditResult` that the command line shows."""

    def __init__(self, path: Path, config: EditConfig) -> None:
        self.path, self.config = path, config
        self.metrics = [RECORD]
        self.samples: list[Sample] = []
        self.outcome: Outcome | None = Outcome("failed", "FAILED: nothing [moved].", "no")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Replace the pipeline; returns the arguments that it was called with."""
    received: dict[str, Any] = {}

    def configure(
        overrides: Mapping[str, Any], config: Path | None = None, concept: Concept | None = None
    ) -> EditConfig:
        received["overrides"] = dict(overrides)
        values = read_config_file(config) if config else {}
        default = {"concept": concept.name if concept else "pocket-safety"}
        return resolve(default, values, overrides, where=str(config or "the options"))

    def train(path: Path, config: EditConfig, on_event: Any) -> FakeResult:
        if received.get("raises"):
            raise received["raises"]
        on_event(StageEvent("load", "loading [bold]pocket[/]"))
        on_event(StageEvent("measure", "safety", 1, 2))
        on_event(RoundEvent(1, 2, {"adversarial": 0.5}, 0.9, -0.5, 0.001, True, 1.0))
        return FakeResult(path, config)

    def run_edit(
        config: EditConfig, concept: Concept, path: Path, editable: Any = None, *, on_event: Any
    ) -> FakeResult:
        received.update(config=config, concept=concept, path=path, editable=editable)
        check_free(path)
        run = RunDir.create(path, config)
        if editable is not None:
            run.concept.mkdir()
        return train(path, config, on_event)

    def resume(path: Path, model: str | None = None, *, on_event: Any, **given: Any) -> FakeResult:
        received["given"] = {"model": model, **given}
        received["resumed"] = path
        return train(path, RunDir.open(path).config(), on_event)

    def choose_path(config: EditConfig) -> Path:
        return next_free(Path("runs"), f"{Path(config.concept).stem}-{config.direction}")

    fake = type(sys)("retouch.pipeline")
    vars(fake).update(
        configure=configure, run_edit=run_edit, resume=resume, choose_path=choose_path
    )
    monkeypatch.setitem(sys.modules, "retouch.pipeline", fake)
    monkeypatch.setattr(retouch, "pipeline", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    return received


def test_only_options_that_are_given_override(pipeline: dict[str, Any]) -> None:
    assert call("edit", "pocket").exit_code == 0
    assert pipeline["overrides"] == {"model": "pocket"}
    assert pipeline["path"] == Path("runs/pocket-safety-raise-1")
    assert pipeline["concept"].name == "pocket-safety"
    result = call(
        *("edit", "pocket", "--layers-to-transform", "3, 4,5", "--learning-rate", "1e-3"),
        *("--target-modules", "q_proj,v_proj", "--no-discriminator-reset-each-round"),
        *("--trust-remote-code", "--direction", "lower"),
    )
    assert result.exit_code == 0, result.output
    config = pipeline["config"]
    assert config.lora.layers_to_transform == (3, 4, 5)
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert (config.train.learning_rate, config.direction) == (1e-3, "lower")
    assert config.load.trust_remote_code
    assert pipeline["overrides"]["discriminator"] == {"reset_each_round": False}
    assert "r" not in pipeline["overrides"]["lora"]


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--model", "other"], "model", "other"),
        (["m", "--model", "m"], "model", "m"),
        (["m", "--lora-r", "3"], "lora.r", 3),
        (["m", "--r", "3"], "lora.r", 3),
        (["m", "--lora_alpha", "3"], "lora.lora_alpha", 3.0),
        (["m", "--rounds", "3"], "train.rounds", 3),
        (["m", "--num-train-rounds", "3"], "train.rounds", 3),
        (["m", "--num_train_rounds=3"], "train.rounds", 3),
        (["m", "--batch_size", "3"], "train.batch_size", 3),
        (["m", "--retain_concepts", "tone,truth"], "data.retain_concepts", ("tone", "truth")),
        (["m", "--discriminator_layers", "2"], "discriminator.layers", (2,)),
        (["m", "--no-fsdp"], "load.fsdp", False),
        (["m", "--fsdp"], "load.fsdp", True),
    ],
)
def test_aliases(pipeline: dict[str, Any], arguments: list[str], path: str, value: Any) -> None:
    result = call("edit", *arguments)
    assert result.exit_code == 0, result.output
    found = pipeline["config"]
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("flag", ["--out", "--output-dir", "--output_dir"])
def test_the_output_directory_has_two_names(pipeline: dict[str, Any], flag: str) -> None:
    assert call("edit", "pocket", flag, "there").exit_code == 0
    assert pipeline["path"] == Path("there")


def test_a_wrong_value_names_its_option_or_its_key(pipeline: dict[str, Any]) -> None:
    assert "`--lora-r`" in error_of(call("edit", "pocket", "--lora-r", "many"), 2)
    assert "`--direction`" in error_of(call("edit", "pocket", "--direction", "up"), 2)
    assert "`lora.layers_to_transform.1`" in error_of(
        call("edit", "pocket", "--layers-to-transform", "3,x"), 2
    )
    Path("settings.yaml").write_text("lora: {rnak: 3}\n")
    assert "`lora.rnak`" in error_of(call("edit", "pocket", "--config", "settings.yaml"), 2)
    Path("settings.yaml").write_text("lora: {r: 0}\n")
    message = error_of(call("edit", "pocket", "--config", "settings.yaml"), 2)
    assert "`lora.r`" in message
    assert "settings.yaml" in message
    assert "absent.yaml" in error_of(call("edit", "pocket", "--config", "absent.yaml"), 2)


def test_an_unknown_quantisation_or_template_is_reported_before_anything_runs(
    pipeline: dict[str, Any],
) -> None:
    message = error_of(call("edit", "pocket", "--quantize", "2bit"), 2)
    assert "'none', '8bit' or '4bit'" in message
    assert "`--quantize`" in message
    assert "config" not in pipeline


def test_edit_needs_a_model_and_resume_excludes_options(pipeline: dict[str, Any]) -> None:
    assert "MODEL" in error_of(call("edit", "--lora-r", "4"), 2)
    message = error_of(call("edit", "pocket", "--resume", "stopped", "--lora-r", "4"), 2)
    assert "Leave out --lora-r." in message
    assert "--out" in error_of(call("edit", "--resume", "stopped", "--out", "there"), 2)
    assert "`--quiet` and `--json`" in error_of(call("edit", "pocket", "--quiet", "--json"), 2)
    assert "'a'" in error_of(call("edit", "a", "--model", "b"), 2)
    RunDir.create(Path("stopped"), EditConfig(seed=4))
    options = ("--direction", "lower", "--trust-remote-code", "--allow-weakening", "a test")
    assert call("edit", "pocket", "--resume", "stopped", *options).exit_code == 0
    assert pipeline["resumed"] == Path("stopped")
    given = pipeline["given"]
    assert (given["model"], given["direction"]) == ("pocket", "lower")
    assert given["load_config"].trust_remote_code
    assert given["allow_weakening"] == "a test"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model that makes a concept; returns the arguments that it was called with."""
    received: dict[str, Any] = {}

    def make(config: EditConfig, instruction: str, prompts: Path | None, _: Any) -> Any:
        received.update(config=config, instruction=instruction, prompts=prompts)
        return ("loaded", *made_concept(instruction))

    monkeypatch.setattr("retouch.cli.edit._from_instruction", make)
    return received


def test_an_instruction_takes_the_place_of_a_concept(
    pipeline: dict[str, Any], made: dict[str, Any]
) -> None:
    flags = ("--instruction", "Use one word.", "--prompts", "p.txt", "--lora-r", "4")
    result = call("edit", "pocket", *flags)
    assert result.exit_code == 0, result.output
    assert (made["instruction"], made["prompts"]) == ("Use one word.", Path("p.txt"))
    assert (made["config"][0], pipeline["config"].lora.r) == ("pocket", 4)
    assert pipeline["concept"].name == pipeline["config"].concept == "made"
    assert pipeline["editable"] == "loaded"
    assert pipeline["path"] == Path("runs/made-raise-1")
    assert "Use one word." in Path("runs/made-raise-1/concept/audit.md").read_text()


def test_the_audit_of_an_instruction_is_kept_when_the_edit_fails(
    pipeline: dict[str, Any], made: dict[str, Any]
) -> None:
    pipeline["raises"] = DivergedError("It diverged.")
    error_of(call("edit", "pocket", "--instruction", "Use one word.", "--out", "there"), 6)
    assert Path("there/concept/audit.md").is_file()
    message = error_of(call("edit", "pocket", "--instruction", "x", "--out", "there"), 5)
    assert "there" in message


def test_options_that_exclude_an_instruction(pipeline: dict[str, Any]) -> None:
    flags = ("--instruction", "Use one word.")
    message = error_of(call("edit", "pocket", *flags, "--concept", "tone"), 2)
    assert "`--instruction` and `--concept`" in message
    assert "--instruction" in error_of(call("edit", "--resume", "stopped", *flags), 2)
    assert "`--prompts`" in error_of(call("edit", "pocket", "--prompts", "p.txt"), 2)


def test_the_model_does_not_come_from_the_configuration_file(pipeline: dict[str, Any]) -> None:
    Path("settings.yaml").write_text("model: other\n")
    assert "MODEL is missing" in error_of(call("edit", "--config", "settings.yaml"), 2)


def test_edit_shows_stages_rounds_and_metrics(pipeline: dict[str, Any]) -> None:
    output = call("edit", "pocket").output
    for part in (
        "loading [bold]pocket[/]",
        "1/2",
        "90.0 %",
        "best",
        "attack refusal",
        "runs/pocket-safety",
    ):
        assert part in output
    assert "retouch export runs/pocket-safety-raise-1" in output


def test_the_outcome_is_the_first_line_of_the_result(pipeline: dict[str, Any]) -> None:
    result = call("edit", "pocket")
    assert result.exit_code == 0
    after_training = result.stdout.partition("best")[2].split()
    assert " ".join(after_training).startswith("FAILED: nothing [moved].")
    assert call("edit", "pocket", "--strict").exit_code == 3
    line = call("edit", "pocket", "--json", "--strict").stdout.splitlines()[-1]
    assert json.loads(line)["outcome"]["status"] == "failed"


def test_quiet_prints_only_the_path(pipeline: dict[str, Any]) -> None:
    assert call("edit", "pocket", "--quiet").stdout == "runs/pocket-safety-raise-1\n"


def test_json_prints_one_object_per_line(pipeline: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in call("edit", "pocket", "--json").stdout.splitlines()]
    assert [line.get("event") for line in lines] == ["stage", "stage", "round", None]
    assert lines[-1]["run"] == "runs/pocket-safety-raise-1"
    assert lines[-1]["metrics"][0]["after"]["value"] == 0.9


def test_fields_in_an_error_become_flags(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = DivergedError("It diverged.", "Lower `train.learning_rate`.")
    message = error_of(call("edit", "pocket"), 6)
    assert message == "Error: It diverged. Lower `--learning-rate`.\n"
    directory = "runs/pocket-safety-raise-1"
    assert directory in error_of(call("edit", "pocket", "--out", directory), 5)


def test_an_interrupted_edit_tells_how_to_continue(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = KeyboardInterrupt()
    result = call("edit", "pocket", "--direction", "lower", "--allow-weakening", "a test")
    assert result.exit_code == 130
    options = "--direction lower --allow-weakening 'a test'"
    command = f"retouch edit pocket {options} --resume runs/pocket-safety-lower-1"
    assert command in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_template_variables_are_assignments_or_json(pipeline: dict[str, Any]) -> None:
    flag = "--chat-template-kwargs"
    given = (flag, "enable_thinking=false", flag, '{"budget": 5, "style": "plain"}')
    result = call("edit", "pocket", *given, "--chat-template-time", "2024-02-05")
    assert result.exit_code == 0, result.output
    load = pipeline["config"].load
    expected = {"enable_thinking": False, "budget": 5, "style": "plain"}
    assert (load.chat_template_kwargs, load.chat_template_time) == (expected, "2024-02-05")
    for wrong in ("enable_thinking", '{"enable_thinking": ', "tokenize=true"):
        error_of(call("edit", "pocket", flag, wrong), 2)


def test_a_chat_template_that_does_not_exist_is_named() -> None:
    options = ["--chat-template", "nowhere.jinja", "--suites", "none"]
    assert "nowhere.jinja" in error_of(call("edit", "pocket", *options), 2)


def test_the_demo_renames_the_directory_of_an_earlier_one(pipeline: dict[str, Any]) -> None:
    RunDir.create(Path("runs/demo"), EditConfig(seed=1))
    RunDir.create(Path("runs/demo-1"), EditConfig(seed=2))
    assert demo.move_aside(Path("runs/demo")) == Path("runs/demo-2")
    assert RunDir.open(Path("runs/demo-2")).config().seed == 1
    assert demo.move_aside(Path("runs/demo")) is None
    Path("letters").mkdir()
    Path("letters/one").write_text("dear")
    with pytest.raises(RunError) as raised:
        demo.move_aside(Path("letters"))
    assert raised.value.code == "not-a-run"
    assert Path("letters/one").exists()


def test_the_demo_runs_the_edit_of_safety(pipeline: dict[str, Any]) -> None:
    result = call("demo")
    assert result.exit_code == 0, result.output
    assert pipeline["overrides"] == {
        "model": "pocket",
        "concept": "pocket-safety",
        "direction": "raise",
        "evaluation": {"suites": "concept", "limit": 64},
    }
    assert pipeline["path"] == Path("runs/demo")
    assert "retouch chat pocket --adapter runs/demo" in result.output
    assert "runs/demo-1" in call("demo").output


def test_the_demo_shows_attacks_of_different_families() -> None:
    def both(metric: str, group: str, number: int, edited: str) -> list[Sample]:
        prompt = (Message("user", f"{metric}{group}{number}"),)
        return [
            Sample("safety", metric, "base", prompt, "Sure.", "answer", 0, group=group),
            Sample("safety", metric, "edited", prompt, edited, "refuse", 1, group=group),
        ]

    samples = both("benign", "x", 0, "No.")
    for group in "abcd":
        samples += both("attacked", group, 0, "Sure.") + both("attacked", group, 1, "No.")
    concept = Concept(
        "safety",
        "",
        "",
        {},
        {"raise": DirectionSpec(("attack",), ("direct",), ())},
        metrics=(
            MetricSpec("safety", "benign", ("benign",), "refuse"),
            MetricSpec("safety", "attacked", ("attack",), "refuse"),
        ),
    )
    pairs = demo.example_pairs(concept, samples, ("attack",))
    assert [pair.edited.group for pair in pairs] == list("abcd")
    # The first of each family, not those with the best responses.
    assert all(
        pair.edited.metric == "attacked" and pair.edited.response == "Sure." for pair in pairs
    )
    (harmless,) = demo.example_pairs(concept, samples, ("benign",))
    assert harmless.edited.metric == "benign"


def test_the_demo_of_smollm2_raises_safety(pipeline: dict[str, Any]) -> None:
    call("demo", "smollm2", "--out", "runs/real")
    assert pipeline["overrides"] == {
        "model": "smollm2",
        "concept": "safety",
        "direction": "raise",
        "evaluation": {"suites": "concept", "limit": 24},
    }
    assert pipeline["path"] == Path("runs/real")


def test_a_demo_of_another_model_is_an_error() -> None:
    assert "`pocket`, `smollm2`" in error_of(call("demo", "gpt"), 2)
