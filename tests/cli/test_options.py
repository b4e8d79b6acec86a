"""Options that are generated from the configuration: complete, with aliases, renamed ones known."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from helpers.command_line import call, error_of
from retouch.cli.app import app
from retouch.cli.options import CONFIG, LOAD, Command, configured, flags_of
from retouch.core.config import EditConfig, TrainConfig, option
from retouch.core.options import OPTIONS, RENAMED, list_options

LOADING = ("evaluate", "robustness", "compare", "tune", "chat", "merge")


def parameters(name: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    return {parameter.name: parameter for parameter in command.commands[name].params}


@pytest.mark.parametrize("name", ["edit", "doctor"])
def test_every_field_of_the_configuration_is_an_option(name: str) -> None:
    known = parameters(name)
    for one in OPTIONS:
        assert set(one.flags) <= {flag.partition("/")[0] for flag in known[one.name].opts}, (
            f"{one.path} of {name}"
        )
    text = " ".join(call(name, "--help").output.split())
    for one in OPTIONS:
        assert f"{one.flag} " in text or f"{one.flag}, " in text
        if one.path != "model":
            assert " ".join((one.field.description or "").split()[:2]) in text


@pytest.mark.parametrize("name", LOADING)
def test_commands_that_load_a_model_share_the_load_options(name: str) -> None:
    known = parameters(name)
    assert {path.replace(".", "_") for path in LOAD} <= set(known)
    assert "--model" in known["model"].opts
    if name != "merge":
        assert known["positional_model"].param_type_name == "argument"


class LongTrainConfig(TrainConfig):
    """The training loop, and more of it."""

    warmup_rounds: int = option(3, "rounds of warm-up", aliases=("--warmup",), ge=0)


class LongEditConfig(EditConfig):
    train: LongTrainConfig = LongTrainConfig()


def test_a_new_field_becomes_an_option_by_itself() -> None:
    received: list[dict[str, Any]] = []
    paths = [one.path for one in list_options(LongEditConfig)]

    @configured(*paths, root=LongEditConfig)
    def command(settings: dict[str, Any]) -> None:
        received.append(settings)

    made = typer.Typer(add_completion=False, rich_markup_mode=None)
    made.command(cls=Command)(command)
    assert set(paths) - set(CONFIG) == {"train.warmup_rounds"}
    text = CliRunner().invoke(made, ["--help"]).output
    assert "The training loop, and more of it:" in text
    assert "--warmup-rounds, --warmup N" in text
    result = CliRunner().invoke(made, ["m", "--warmup", "5", "--lora-r", "4"])
    assert result.exit_code == 0, result.output
    assert received == [{"model": "m", "lora": {"r": "4"}, "train": {"warmup_rounds": "5"}}]


def test_the_help_lists_the_options_by_group() -> None:
    lines = call("edit", "--help").output.splitlines()
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "Arguments:",
        "Options:",
        "How the base model is loaded:",
        "Which examples an edit uses:",
        "Where the LoRA adapters go (PEFT's names):",
        "The training loop:",
        "Weights of the generator's loss:",
        "The representation discriminators:",
        "Adversaries that the generator is trained against besides the discriminators:",
        "What is measured after training, on the test splits:",
    ]


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_option_of_an_earlier_version_names_the_present_one(old: str) -> None:
    flag = f"--{old.replace('_', '-')}"
    new = next(one.flag for one in OPTIONS if one.path == RENAMED[old])
    known = [name for one in OPTIONS for name in one.flags]
    if flag in known:  # the flag is still in use
        return
    message = error_of(call("edit", "pocket", flag, "1"), 2)
    assert message == f"Error: `{flag}` was renamed: use `{new}`.\n"


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("robustness", "--questions", "--attacks"),
        ("tune", "--keep", "--save"),
        ("tune", "--guard", "--max-drift"),
        ("tune", "--labels", "--num-examples"),
        ("compare", "--labels", "--num-examples"),
        ("chat", "--once", "--prompt"),
    ],
)
def test_renamed_options_of_single_commands(command: str, old: str, new: str) -> None:
    assert f"use `{new}`" in error_of(call(command, "pocket", old, "x"), 2)


def test_a_renamed_option_is_unknown_to_a_command_without_the_present_one() -> None:
    result = call("chat", "pocket", "--labels", "4")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_every_flag_is_unique() -> None:
    flags = [flag for one in OPTIONS for flag in one.flags]
    assert len(flags) == len(set(flags))


def test_error_messages_name_the_flags_of_the_command() -> None:
    flags = flags_of(list(parameters("edit").values()))
    assert flags["data.num_examples"] == flags["num_examples"] == "--num-examples"
    assert flags["learning_rate"] == "--learning-rate"
    assert flags["discriminator.learning_rate"] == "--discriminator-learning-rate"
    assert flags["lora.r"] == flags["r"] == "--lora-r"
    assert flags["as_json"] == "--json"
    assert flags["output_dir"] == "--out"
    assert "num_retain" not in flags_of(list(parameters("tune").values()))
    assert flags_of(list(parameters("compare").values()))["num_examples"] == "--num-examples"


@pytest.mark.parametrize(
    "given",
    [
        ["--batch-size", "0"],
        ["--batch_size", "0"],
        ["--batch_size=0"],
    ],
)
def test_underscores_and_dashes_are_equal(given: list[str]) -> None:
    assert "`--batch-size`" in error_of(call("edit", "pocket", *given), 2)
