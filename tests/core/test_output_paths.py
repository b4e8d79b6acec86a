"""An output replaces nothing but an earlier output of the same kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command_line import call, error_of
from retouch.comparison.tuned_settings import save_settings
from retouch.core.atomic import (
    atomic_write,
    check_output_file,
    check_output_folder,
    check_writable,
)
from retouch.core.errors import RunError
from retouch.core.run_dir import next_free, safe_name


def a_link(path: Path) -> None:
    path.symlink_to(path.with_name("other"))


def a_link_to_a_file(path: Path) -> None:
    path.with_name("other").write_text("[]")
    path.symlink_to(path.with_name("other"))


def a_letter(path: Path) -> None:
    path.write_text("dear")


def a_folder(path: Path) -> None:
    path.mkdir()


KINDS = (a_link, a_link_to_a_file, a_letter, a_folder, os.mkfifo)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("command", ["evaluate", "robustness"])
def test_metrics_replace_nothing_else(
    tmp_path: Path, make: Callable[[Path], None], command: str
) -> None:
    file = tmp_path / "out"
    make(file)
    message = error_of(call(command, "pocket", "--out", str(file)), 5)
    assert "no earlier output" in message
    assert not file.is_file() or file.read_text() in ("dear", "[]")


@pytest.mark.parametrize("make", KINDS)
def test_settings_replace_nothing_else(tmp_path: Path, make: Callable[[Path], None]) -> None:
    file = tmp_path / "out"
    make(file)
    with pytest.raises(RunError):
        save_settings(file, "lorra", {}, "no time")


def test_settings_are_added_to_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    save_settings(file, "lorra", {"max_steps": 3}, "no time")
    save_settings(file, "dpo", {"max_steps": 4}, "no time")
    assert "lorra" in file.read_text()


@pytest.mark.parametrize("make", [a_link, a_link_to_a_file, a_folder, os.mkfifo])
def test_a_write_replaces_regular_files_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    file = tmp_path / "out"
    make(file)
    with pytest.raises(RunError) as error:
        atomic_write(file, "text")
    assert error.value.code == "path-taken"
    assert not (tmp_path / "other").exists() or (tmp_path / "other").read_text() == "[]"


def test_an_earlier_output_is_recognised(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    check_output_file(file, lambda text: False)
    file.write_text("ours")
    check_output_file(file, lambda text: text == "ours")
    check_output_folder(folder, ("mark",))
    folder.mkdir()
    check_output_folder(folder, ("mark",))
    (folder / "letter").write_text("dear")
    with pytest.raises(RunError):
        check_output_folder(folder, ("mark",))
    with pytest.raises(RunError):
        check_output_folder(file, ("mark",))
    (folder / "mark").touch()
    check_output_folder(folder, ("mark",))


@pytest.mark.parametrize("name", ["../../../../x", "/etc/x", "..", "a/../../b", "x\x00y", "\u202e"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    assert next_free(tmp_path / "runs", name).parent == tmp_path / "runs"
    assert "/" not in safe_name(name)
    assert safe_name(name) not in ("", ".", "..")
    assert len(safe_name("x" * 1000)) <= 100


@pytest.mark.parametrize("target", ["file/out", "file/deep/out", "/proc/no/where", "/dev/null/out"])
def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("a user's")
    if target.startswith("/proc") and os.access("/proc", os.W_OK):
        target = "/dev/full/out"  # root may write everywhere, as far as the rights say
    with pytest.raises(RunError, match="cannot be written") as raised:
        check_writable(tmp_path / target)
    assert raised.value.code == "path-not-writable"
    check_writable(tmp_path / "new" / "deep" / "out")


@pytest.mark.parametrize(
    "words",
    [
        ("robustness", "pocket", "--adapter", "RUN", "--output-file", "{0}/file/out.json"),
        ("edit", "pocket", "--output-dir", "{0}/file/out"),
        ("evaluate", "pocket", "--output-file", "{0}/file/out.json"),
        ("compare", "pocket", "--output-dir", "{0}/file/out"),
    ],
)
def test_commands_check_their_output_first(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("a user's")
    result = call(*(word.format(tmp_path) for word in words))
    assert "cannot be written" in error_of(result, RunError.exit_code)


@pytest.mark.parametrize("option", ["--adapter", "--config", "--chat-template"])
def test_a_path_that_is_too_long_is_one_message(option: str) -> None:
    command = "chat" if option != "--config" else "doctor"
    more = ("--prompt", "a") if command == "chat" else ()
    for path in ("x/" * 3000, "a" * 300):
        result = call(command, "pocket", option, path, *more)
        assert len(error_of(result, result.exit_code)) < 2500
        assert result.exit_code != 0
