"""Reporters of other packages: their files, and names that they may not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import retouch
from helpers.pocket_edit import small_settings
from retouch.core.errors import ConfigError
from retouch.core.run_dir import RunDir
from retouch.reporting import reporters


@pytest.fixture
def no_reporters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "_REGISTERED", {})


def edit(path: Path) -> None:
    config = small_settings({"train.rounds": 1, "evaluation.suites": "none"})
    retouch.edit(concept="pocket-tone", config=config, output_dir=path, on_event=lambda event: None)


@pytest.mark.usefixtures("no_reporters")
def test_a_registered_reporter_writes_its_files(tmp_path: Path) -> None:
    reporters.register_reporter("rounds", lambda edit: {"rounds.txt": f"{len(edit.events)}\n"})
    edit(tmp_path / "run")
    assert (tmp_path / "run" / "rounds.txt").read_text() == "1\n"


@pytest.mark.usefixtures("no_reporters")
@pytest.mark.parametrize("name", ["../outside.txt", "config.yaml", "README.md", "..", "", "a/b"])
def test_a_reporter_cannot_leave_the_run_or_replace_its_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for existing in ("config.yaml", "README.md"):
        (path / existing).write_text("before")
    reporters.register_reporter("bad", lambda edit: {name: "after"})
    empty: Any = None
    with pytest.raises(ConfigError) as error:
        reporters.added_files(empty, lambda file: (path / file).exists())
    assert error.value.code == "reporter-file"


@pytest.mark.usefixtures("no_reporters")
def test_a_faulty_reporter_leaves_a_finished_run(tmp_path: Path) -> None:
    reporters.register_reporter("bad", lambda edit: {"run.json": "after"})
    with pytest.raises(ConfigError):
        edit(tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    assert run.finished
    assert run.provenance()["concept"]["name"] == "pocket-tone"


def test_a_built_in_name_is_taken() -> None:
    with pytest.raises(ConfigError) as error:
        reporters.register_reporter("card", lambda edit: {})
    assert error.value.code == "reporter-name-taken"
