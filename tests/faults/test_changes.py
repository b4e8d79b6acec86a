"""A run whose settings, data or model have changed since it was interrupted is not continued."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

import retouch
from helpers.tiny_run import write_inputs
from retouch.core.errors import RetouchError, RunError
from retouch.core.types import Event, RoundEvent


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of an edit and its run, which was interrupted after a round."""
    folder = tmp_path_factory.mktemp("interrupted")
    options = write_inputs(folder)

    def stop(event: Event) -> None:
        if isinstance(event, RoundEvent):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retouch.edit(options[0], config=options[2], output_dir=folder / "run", on_event=stop)
    return folder


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(interrupted / "run", tmp_path / "run")


def edit_config(run: Path, path: str, value: Any) -> None:
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text())
    group = values
    *groups, name = path.split(".")
    for one in groups:
        group = group[one]
    assert group[name] != value
    group[name] = value
    file.write_text(yaml.safe_dump(values))


def error_of_resume(interrupted: Path, run: Path) -> RetouchError:
    with pytest.raises(RunError) as error:
        retouch.resume(run, str(interrupted / "model"), on_event=lambda event: None)
    return error.value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 4),
        ("train.learning_rate", 1e-3),
        ("data.num_retain", 7),
        ("lora.r", 8),
        ("concept", "tone"),
    ],
)
def test_a_changed_setting_is_named_before_the_model_is_loaded(
    interrupted: Path, run: Path, path: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("retouch.pipeline.load_model", load)
    edit_config(run, path, value)
    error = error_of_resume(interrupted, run)
    assert error.code == "checkpoint-differs"
    assert f"`{path}` is {value!r} and was" in error.message
    assert str(run / "config.yaml") in error.message
    assert str(run / "checkpoints") in error.hint


def test_settings_that_change_no_weights_may_change(interrupted: Path, run: Path) -> None:
    for path, value in (("evaluation.suites", "none"), ("train.micro_batch_size", 4)):
        edit_config(run, path, value)
    model = str(interrupted / "model")
    retouch.resume(run, model, on_event=lambda event: None)
    assert not (run / "metrics.json").exists()


def test_a_restart_without_checkpoints_takes_the_new_settings(interrupted: Path, run: Path) -> None:
    edit_config(run, "seed", 4)
    edit_config(run, "evaluation.suites", "none")
    shutil.rmtree(run / "checkpoints")
    result = retouch.resume(run, str(interrupted / "model"), on_event=lambda event: None)
    assert result.config.seed == 4


def test_changed_weights_of_the_model_are_noticed(interrupted: Path, run: Path) -> None:
    file = interrupted / "model" / "model.safetensors"
    before = file.read_bytes()
    weights = load_file(file)
    weights["model.norm.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    try:
        error = error_of_resume(interrupted, run)
    finally:
        file.write_bytes(before)
    assert error.code == "checkpoint-differs"
    assert "the weights of" in error.message


@pytest.mark.parametrize("name", ["training.safetensors", "responses.json", "layers.json"])
def test_a_damaged_checkpoint_is_noticed_before_the_model_is_loaded(
    interrupted: Path, run: Path, name: str
) -> None:
    file = run / "checkpoints" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    error = error_of_resume(interrupted, run)
    assert error.code == "checkpoint-broken"
    assert str(file) in error.message
    file.unlink()  # as the hint says
    edit_config(run, "evaluation.suites", "none")
    assert retouch.resume(run, str(interrupted / "model"), on_event=lambda event: None).path == run


def test_a_run_that_is_removed_during_the_edit_is_an_error(interrupted: Path, run: Path) -> None:
    def remove(event: Event) -> None:
        if isinstance(event, RoundEvent):
            shutil.rmtree(run)

    with pytest.raises(RunError) as error:
        retouch.resume(run, str(interrupted / "model"), on_event=remove)
    assert error.value.code == "run-vanished"
    assert not run.exists()
