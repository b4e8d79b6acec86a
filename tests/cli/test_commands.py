"""The command line: what it offers, and how it fails."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import retouch
from retouch.cli import demo
from retouch.cli import edit as edit_command
from retouch.cli.app import app
from retouch.cli.loading import resolve_base
from retouch.concepts.concept import Concept, DirectionSpec, MetricSpec
from retouch.core.config import EditConfig
from retouch.core.errors import DivergedError, RunError
from retouch.core.run_dir import RunDir, next_free
from retouch.core.types import Message, Record, RoundEvent, Sample, Score, StageEvent

COMMANDS = [
    [],
    ["demo"],
    ["edit"],
    ["doctor"],
    ["evaluate"],
    ["compare"],
    ["search"],
    ["robustness"],
    ["chat"],
    ["export"],
    ["concept"],
    ["concept", "list"],
    ["concept", "show"],
    ["concept", "check"],
]


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def failed(result: Result, code: int) -> str:
    """The message of a command that failed in the way that the user is meant to see."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    assert "..." not in result.output.replace("[ARGS]...", "").replace("N,...", "").replace(
        "NAME,...", ""
    )


def test_version() -> None:
    assert call("--version").output == f"retouch {retouch.__version__}\n"


def test_help_is_light() -> None:
    code = (
        "import sys, time\n"
        "sys.argv = ['retouch', '--help']\n"
        "from retouch.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'matplotlib', 'jinja2'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
        "print(time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    # The processor's seconds, not the clock's: a busy machine is not a slow program. The objective is
    # half a second, and it takes about a quarter here.
    assert float(done.stdout.split()[-1]) < 1


def test_what_speaks_up_is_not_loaded_before_it_is_hushed() -> None:
    # PEFT brings bitsandbytes along, which says at once that it would rather have one more package.
    code = (
        "import sys\n"
        "import retouch.pipeline, retouch.preflight.check, retouch.comparison.compare\n"
        "import retouch.comparison.parallel, retouch.evaluation.robustness\n"
        "print('editable:', sorted({'peft', 'bitsandbytes'} & set(sys.modules)))\n"
        "from retouch.cli.loading import quiet_libraries\n"
        "quiet_libraries()\n"
        "import peft\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "editable: []\n"
    assert done.stderr == ""


def test_the_options_of_edit_are_the_fields_of_its_configuration() -> None:
    own = {"config", "out", "resume", "quiet", "as_json"}
    names = set(inspect.signature(edit_command.edit).parameters)
    assert names - own == set(EditConfig.model_fields)
    text = " ".join(call("edit", "--help").output.split())
    for name, field in EditConfig.model_fields.items():
        if name != "model":
            assert f"--{name.replace('_', '-')} " in text
            assert " ".join((field.description or "").split()[:2]) in text


# The commands around a pipeline that takes no time.


class FakeRun:
    def __init__(self, path: Path, config: EditConfig) -> None:
        self.path, self.config = path, config
        self.metrics = [
            Record(
                "safety",
                "attack_refusal",
                "rate",
                "higher",
                Score(0.1, 0, 0.2, 50),
                Score(0.9, 0.8, 1, 50),
            )
        ]
        self.samples: list[Sample] = []


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A stand-in for the pipeline; what it was called with."""
    seen: dict[str, Any] = {}

    def configure(overrides: Mapping[str, Any], config_file: Path | None = None) -> EditConfig:
        from retouch.core.config import read_config_file, resolve

        seen["overrides"] = dict(overrides)
        return resolve(read_config_file(config_file) if config_file else {}, overrides)

    def train(path: Path, config: EditConfig, on_event: Any) -> FakeRun:
        if seen.get("raises"):
            raise seen["raises"]
        on_event(StageEvent("load", "loading [bold]pocket[/]"))
        on_event(StageEvent("measure", "safety", 1, 2))
        on_event(RoundEvent(1, 2, {"a": 0.5}, 0.9, -0.5, 0.001, True, 1.0))
        return FakeRun(path, config)

    def edit(config: EditConfig, *, out: Path, on_event: Any) -> FakeRun:
        seen["config"], seen["out"] = config, out
        RunDir.create(out, config)
        return play(out, config, on_event)

    def resume(path: Path, *, on_event: Any) -> FakeRun:
        seen["resumed"] = path
        return play(path, RunDir.open(path).config(), on_event)

    stand_in = type(sys)("retouch.pipeline")
    vars(stand_in).update(
        configure=configure,
        edit=edit,
        resume=resume,
        choose_path=lambda config: next_free(
            Path("runs"), f"{Path(config.concept).stem}-{config.direction}"
        ),
    )
    monkeypatch.setitem(sys.modules, "retouch.pipeline", stand_in)
    monkeypatch.setattr(retouch, "pipeline", stand_in, raising=False)
    monkeypatch.chdir(tmp_path)
    return seen


def test_only_options_that_are_given_override(pipeline: dict[str, Any]) -> None:
    assert call("edit", "pocket").exit_code == 0
    assert pipeline["overrides"] == {"model": "pocket"}
    assert pipeline["out"] == Path("runs/safety-raise-1")
    result = call(
        *("edit", "pocket", "--layers", "3, 4,5", "--modules", "q_proj,v_proj", "--lr", "1e-3"),
        *("--no-discriminator-fresh", "--trust-remote-code", "--direction", "lower"),
    )
    assert result.exit_code == 0, result.output
    config = pipeline["config"]
    assert config.lora.layers_to_transform == (3, 4, 5)
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert (config.train.learning_rate, config.direction, config.load.trust_remote_code) == (
        1e-3,
        "lower",
        True,
    )
    assert pipeline["overrides"]["discriminator_fresh"] is False
    assert "rank" not in pipeline["overrides"]


def test_a_wrong_value_names_its_key(pipeline: dict[str, Any]) -> None:
    assert "`rank`" in failed(call("edit", "pocket", "--rank", "many"), 2)
    assert "`direction`" in failed(call("edit", "pocket", "--direction", "up"), 2)
    assert "`layers" in failed(call("edit", "pocket", "--layers", "3,x"), 2)
    Path("settings.yaml").write_text("rnak: 3\n")
    assert "`rnak`" in failed(call("edit", "pocket", "--config", "settings.yaml"), 2)
    assert "absent.yaml" in failed(call("edit", "pocket", "--config", "absent.yaml"), 2)


def test_edit_needs_a_model_and_resume_needs_nothing_else(pipeline: dict[str, Any]) -> None:
    assert "Name the model" in failed(call("edit", "--rank", "4"), 2)
    assert "MODEL, --rank" in failed(call("edit", "pocket", "--resume", "r", "--rank", "4"), 2)
    assert "exclude" in failed(call("edit", "pocket", "--quiet", "--json"), 2)
    RunDir.create(Path("cut"), EditConfig(seed=4))
    assert call("edit", "--resume", "cut").exit_code == 0
    assert pipeline["resumed"] == Path("cut")


def test_edit_shows_what_happens(pipeline: dict[str, Any]) -> None:
    output = call("edit", "pocket").output
    for part in (
        "loading [bold]pocket[/]",
        "1/2",
        "90.0 %",
        "best",
        "attack refusal",
        "runs/safety",
    ):
        assert part in output
    assert "retouch export runs/safety-raise-1" in output


def test_quiet_prints_the_path_alone(pipeline: dict[str, Any]) -> None:
    assert call("edit", "pocket", "--quiet").stdout == "runs/safety-raise-1\n"


def test_json_prints_an_object_a_line(pipeline: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in call("edit", "pocket", "--json").stdout.splitlines()]
    assert [line.get("event") for line in lines] == ["stage", "stage", "round", None]
    assert lines[-1]["run"] == "runs/safety-raise-1"
    assert lines[-1]["metrics"][0]["after"]["value"] == 0.9


def test_errors_carry_their_exit_code(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = DivergedError("It diverged.", "Lower --lr.")
    assert failed(call("edit", "pocket"), 6) == "Error: It diverged. Lower --lr.\n"
    assert "--out" in failed(call("edit", "pocket", "--out", "runs/safety-raise-1"), 5)


def test_an_interrupted_edit_says_how_to_go_on(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = KeyboardInterrupt()
    result = call("edit", "pocket")
    assert result.exit_code == 130
    assert "retouch edit --resume runs/safety-raise-1" in result.stderr
    assert "Traceback" not in result.output


def test_the_demo_moves_an_earlier_one_aside(pipeline: dict[str, Any]) -> None:
    RunDir.create(Path("runs/demo"), EditConfig(seed=1))
    RunDir.create(Path("runs/demo-1"), EditConfig(seed=2))
    assert demo.move_aside(Path("runs/demo")) == Path("runs/demo-2")
    assert RunDir.open(Path("runs/demo-2")).config().seed == 1
    assert demo.move_aside(Path("runs/demo")) is None
    Path("letters").mkdir()
    Path("letters/one").write_text("dear")
    with pytest.raises(RunError, match="no run"):
        demo.move_aside(Path("letters"))
    assert Path("letters/one").exists()


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
    pairs = demo.attacked(concept, samples)
    assert len(pairs) == 3
    assert len({pair.edited.group for pair in pairs}) == 3
    # The first of each family, not those that look best.
    assert all(pair.metric == "attacked" and pair.edited.response == "Sure." for pair in pairs)


# Commands that need no model.


def test_export_says_what_is_no_run(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "does not exist" in failed(call("export", str(tmp_path / "no"), "--out", out), 5)
    run = RunDir.create(tmp_path / "run", EditConfig())
    assert "--resume" in failed(call("export", str(run.path), "--out", out), 5)
    assert "peft, merged" in failed(
        call("export", str(run.path), "--out", out, "--format", "onnx"), 2
    )
    assert "another" in failed(call("export", str(run.path), "--out", str(run.path)), 5)


def test_export_writes_the_adapter_and_its_card(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", EditConfig())
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    (run.adapter / "README.md").write_text("what PEFT wrote")
    facts = {"name": "safety", "title": "Safety", "description": "", "weakens": "lower"}
    run.write_provenance({"concept": facts})
    assert call("export", str(run.path), "--out", str(tmp_path / "new")).exit_code == 0
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "retouch.yaml",
    }
    assert "library_name: peft" in (tmp_path / "new" / "README.md").read_text()


def test_commands_with_an_adapter_say_when_it_is_none(tmp_path: Path) -> None:
    assert "no adapter" in failed(call("chat", "--adapter", str(tmp_path)), 5)
    assert "no adapter" in failed(call("evaluate", "--adapter", str(tmp_path)), 5)
    assert "--split" in failed(call("evaluate", "--split", "train"), 2)


def test_concepts_are_listed_and_shown() -> None:
    listed = call("concept", "list")
    assert listed.exit_code == 0, listed.output
    for name in ("safety", "truthfulness", "gender-bias", "tone"):
        assert name in listed.output
    assert "attack" in call("concept", "show", "safety").output
    assert call("concept", "check", "safety").exit_code == 0
    assert "absent" in failed(call("concept", "show", "absent"), 3)


def test_a_concept_with_faults_is_found_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is {i} {label}?", "label": label, "split": split, "entity": "cat"}
        for split in ("train", "validation", "test")
        for label in ("positive", "negative")
        for i in range(12)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    result = call("concept", "check", str(file))
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.output
    assert "error" in result.stdout or result.stderr.startswith("Error: ")


def test_a_closed_pipe_is_quiet() -> None:
    code = "from retouch.cli.app import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code, "concept", "list"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b""


def test_the_public_names_are_lazy() -> None:
    code = (
        "import sys, retouch\n"
        "assert 'torch' not in sys.modules\n"
        "assert retouch.Concept.__name__ == 'Concept'\n"
        "assert set(retouch.__all__) <= set(dir(retouch))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = retouch.nothing


def test_a_run_is_talked_to_as_it_was_trained(tmp_path: Path) -> None:
    config = EditConfig(model="m", chat_template="own.jinja", quantize="4bit")
    run = RunDir.create(tmp_path / "run", config)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    for folder in (run.path, run.adapter):
        _, base = resolve_base(None, folder)
        assert (base.name, base.chat_template, base.quantize) == ("m", "own.jinja", "4bit")
    assert resolve_base("m", run.path)[1].quantize == "none"


def test_a_chat_template_that_is_not_there_is_named() -> None:
    options = ["--chat-template", "nowhere.jinja", "--measure", "nothing"]
    assert "nowhere.jinja cannot be read" in failed(call("edit", "pocket", *options), 2)


def test_a_quantisation_that_there_is_not_is_refused_at_once() -> None:
    assert "'none', '8bit' or '4bit'" in failed(call("edit", "pocket", "--quantize", "2bit"), 2)
