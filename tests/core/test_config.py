"""Configurations are merged, validated, written and read; options are derived from their fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retouch.core.config import DataConfig, EditConfig, LoraConfig, MethodConfig, TrainConfig
from retouch.core.config_file import dump_yaml, explicit, read_config_file, resolve
from retouch.core.errors import ConfigError
from retouch.core.options import OPTIONS, RENAMED, Option, flatten, list_options, nest

PATHS = [option.path for option in OPTIONS]
GROUPS = {path.partition(".")[0] for path in PATHS if "." in path}


def option(path: str) -> Option:
    (found,) = [one for one in OPTIONS if one.path == path]
    return found


def refused(values: dict[Any, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        resolve(values, where="run.yaml")
    assert raised.value.code == "config-invalid"
    assert "run.yaml" in raised.value.message
    return raised.value


# Merging and validation.


def test_mappings_are_merged_group_by_group() -> None:
    config = resolve(
        {"seed": 1, "train": {"rounds": 3, "batch_size": 4}, "lora": {"layers_to_transform": [1]}},
        {"train": {"rounds": 5}, "lora": {"layers_to_transform": [2, 3]}},
        {},
    )
    assert (config.seed, config.train.rounds, config.train.batch_size) == (1, 5, 4)
    assert config.lora.layers_to_transform == (2, 3)
    assert config.data == DataConfig()


def test_a_merge_leaves_the_mappings_unchanged() -> None:
    first: dict[str, Any] = {"train": {"rounds": 3}}
    resolve(first, {"train": {"rounds": 5}})
    assert first == {"train": {"rounds": 3}}


def test_explicit_values_are_those_that_were_set() -> None:
    assert explicit(EditConfig()) == {}
    values = {"concept": "tone", "train": {"rounds": 3}, "loss": {"sft_weight": 1.0}}
    assert explicit(resolve(values)) == values
    assert explicit(EditConfig(train=TrainConfig(rounds=3))) == {"train": {"rounds": 3}}
    # A value that equals its default counts as set.
    default = TrainConfig().rounds
    assert explicit(resolve({"train": {"rounds": default}})) == {"train": {"rounds": default}}


def test_explicit_values_take_precedence_when_they_are_merged_again() -> None:
    config = resolve({"train": {"rounds": TrainConfig().rounds}})
    assert resolve({"train": {"rounds": 99, "patience": 2}}, explicit(config)).train == TrainConfig(
        rounds=TrainConfig().rounds, patience=2
    )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"train": {"round": 3}}, ["`train.round`", "Did you mean `train.rounds`?"]),
        ({"concpt": "tone"}, ["`concpt`", "Did you mean `concept`?"]),
        ({"learning_rate": 1}, ["`learning_rate`", "`train.learning_rate`"]),
        ({"loss": {"patience": 1}}, ["`loss.patience`", "`train.patience`"]),
        ({"qqqq": 1}, ["`qqqq`", *PATHS]),
        ({"train": {"rounds": 0}}, ["`train.rounds`", "greater than or equal to 1", "got 0"]),
        ({"train": {"rounds": "many"}}, ["`train.rounds`", "'many'"]),
        ({"train": 3}, ["`train`", "got 3"]),
        ({"direction": "up"}, ["`direction`", "'raise' or 'lower'", "'up'"]),
        ({"load": {"max_device_memory": "24 G"}}, ["`load.max_device_memory`", "'24 G'", "24GiB"]),
        ({"train": {"activation_cache": "0"}}, ["`train.activation_cache`", "'0'"]),
        ({1: 2}, ["`1`"]),
        ({"seed": -1, "data": {"labels": 3}}, ["`seed`", "`data.labels`"]),
    ],
)
def test_a_wrong_key_or_value_is_reported_with_its_path(
    values: dict[Any, Any], parts: list[str]
) -> None:
    error = refused(values)
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_reported_with_its_new_path(old: str) -> None:
    new = RENAMED[old]
    assert new in PATHS
    assert old not in PATHS
    if old in GROUPS:  # such as `lora`
        return
    error = refused({old: 1})
    assert f"`{old}`" in error.message
    assert f"`{new}`" in error.hint


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        EditConfig().seed = 1  # type: ignore[misc]


def test_the_settings_of_the_method_are_those_of_its_groups() -> None:
    config = resolve({"seed": 3, "lora": {"r": 2}, "train": {"rounds": 3}})
    assert config.method == MethodConfig(lora=LoraConfig(r=2), train=TrainConfig(rounds=3))


# Files.

CHANGED: dict[str, Any] = {
    "model": "org/name",
    "concept": "mine.csv",
    "direction": "lower",
    "seed": 7,
    "allow_weakening": "a: 'reason'\n# more",
    "load": {"max_device_memory": "1.5 GiB", "dtype": "bfloat16", "fsdp": True},
    "data": {"retain_concepts": ["tone", "safety"], "source_filter": "attack:roleplay"},
    "lora": {"layers_to_transform": [3, 4], "target_modules": ["q_proj"], "lora_alpha": 0.5},
    "train": {"learning_rate": 1e-5, "micro_batch_size": 2},
    "discriminator": {"layers": [], "reset_each_round": True},
    "evaluation": {"suites": "none"},
}


@pytest.mark.parametrize("values", [{}, CHANGED])
def test_a_written_configuration_reads_back_equal(tmp_path: Path, values: dict[str, Any]) -> None:
    config = resolve(values)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config), "utf-8")
    assert resolve(read_config_file(file)) == config


def test_every_field_of_a_written_configuration_has_its_description() -> None:
    lines = [line.strip() for line in dump_yaml(EditConfig()).splitlines()]
    for one in OPTIONS:
        index = lines.index(f"# {one.field.description}")
        assert lines[index + 1].startswith(f"{one.path.rpartition('.')[2]}:")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reads_back_equal(text: str) -> None:
    values = {"concept": text, "load": {"revision": text}, "lora": {"target_modules": [text]}}
    config = resolve(values)
    assert resolve(yaml.safe_load(dump_yaml(config))) == config


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('concept = "tone"\n[train]\nrounds = 3\n[lora]\nlayers_to_transform = [1, 2]\n')
    config = resolve(read_config_file(file))
    assert (config.concept, config.train.rounds) == ("tone", 3)
    assert config.lora.layers_to_transform == (1, 2)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# nothing\n")
    assert read_config_file(file) == {}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("run.yaml", b"train: [", "config-syntax"),
        ("run.yaml", b"- train", "config-syntax"),
        ("run.yaml", b"!!python/object/apply:os.getcwd []", "config-syntax"),
        ("run.toml", b"train = ", "config-syntax"),
        ("run.yaml", b"concept: caf\xe9", "file-unreadable"),
    ],
)
def test_a_file_that_does_not_parse_is_reported(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_config_file(file)
    assert raised.value.code == code
    assert str(file) in raised.value.message
    assert raised.value.hint


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml") as raised:
        read_config_file(tmp_path / "gone.yaml")
    assert raised.value.code == "file-missing"


# Options.


def test_names_and_flags_of_options_are_unique() -> None:
    flags = [flag for one in OPTIONS for flag in one.flags]
    assert len(flags) == len(set(flags))
    assert len({one.name for one in OPTIONS}) == len(OPTIONS)
    assert all(flag.startswith("--") and flag == flag.lower() for flag in flags)


def test_every_option_has_a_description_and_a_placeholder() -> None:
    for one in OPTIONS:
        assert one.field.description
        assert one.help.startswith(one.field.description)
        assert one.metavar or one.is_switch


@pytest.mark.parametrize(
    ("path", "flags", "metavar"),
    [
        ("train.rounds", ("--rounds", "--num-train-rounds"), "N"),
        ("train.learning_rate", ("--learning-rate",), "X"),
        ("discriminator.learning_rate", ("--discriminator-learning-rate",), "X"),
        ("lora.r", ("--lora-r", "--r"), "N"),
        ("lora.layers_to_transform", ("--layers-to-transform",), "N,N,..."),
        ("lora.target_modules", ("--target-modules",), "NAME,..."),
        ("load.quantize", ("--quantize",), "none|8bit|4bit"),
        ("load.fsdp", ("--fsdp",), ""),
        ("concept", ("--concept",), "TEXT"),
    ],
)
def test_flags_and_placeholders(path: str, flags: tuple[str, ...], metavar: str) -> None:
    assert option(path).flags == flags
    assert option(path).flag == flags[0]
    assert option(path).metavar == metavar


def test_the_group_of_an_option() -> None:
    assert option("train.rounds").group == "train"
    assert option("concept").group == ""
    assert option("train.rounds").name == "train_rounds"


def test_a_default_is_part_of_the_help_where_it_is_informative() -> None:
    assert option("train.rounds").help.endswith(f"(default: {TrainConfig().rounds})")
    for path in ("load.fsdp", "load.revision", "lora.target_modules"):
        assert option(path).help == option(path).field.description


def test_the_text_of_a_list_option_is_split() -> None:
    layers = option("lora.layers_to_transform")
    assert layers.is_list
    assert layers.parse("1, 2,") == ("1", "2")
    config = resolve(nest({layers.path: layers.parse("1,2")}))
    assert config.lora.layers_to_transform == (1, 2)
    assert option("concept").parse("a,b") == "a,b"


def test_values_by_path_are_nested_and_flattened() -> None:
    flat = {"seed": 1, "train.rounds": 3, "train.patience": 2, "lora.r": 4}
    nested = {"seed": 1, "train": {"rounds": 3, "patience": 2}, "lora": {"r": 4}}
    assert nest(flat) == nested
    assert flatten(nested) == flat
    assert (
        list(flatten(EditConfig().model_dump()))
        == PATHS
        == [one.path for one in list_options(EditConfig)]
    )


def test_search_ranges_contain_the_defaults() -> None:
    searched = [one for one in OPTIONS if "search" in one.extra]
    assert searched
    for one in searched:
        search = one.extra["search"]
        if "choices" in search:
            assert one.field.default in search["choices"]
        else:
            assert search["low"] < search["high"]
            assert search["low"] <= one.field.default <= search["high"]
