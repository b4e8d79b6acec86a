"""Files and folders are replaced in one step: after a failure the old content is unchanged."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from retouch.core import atomic
from retouch.core.atomic import atomic_folder, atomic_write, restore_folder
from retouch.core.errors import RunError


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "metrics.json"
    atomic_write(file, "old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError, match=r"metrics\.json") as raised:
        atomic_write(file, "new")
    assert raised.value.code == "disk-full"
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_folder_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as new:
        (new / "weights").write_text("old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError) as raised, atomic_folder(folder) as new:
        (new / "weights").write_text("new")
    assert raised.value.code == "disk-full"
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EROFS, "no-permission"), (errno.EIO, "write-failed")]
)
def test_other_errors_of_the_system_name_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=r"metrics\.json") as raised:
        atomic_write(tmp_path / "metrics.json", "new")
    assert raised.value.code == code
    assert raised.value.hint


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as new:
        (new / "one").write_text("1")
    with atomic_folder(folder) as new:
        (new / "two").write_text("2")
        assert (folder / "one").exists()
    assert [file.name for file in folder.iterdir()] == ["two"]
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError
    assert [file.name for file in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_replacement_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as new:
        (new / "weights").write_text("old")

    class Killed(BaseException):
        pass

    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == folder:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed)
        with pytest.raises(Killed), atomic_folder(folder) as new:
            (new / "weights").write_text("new")
    assert not folder.exists()
    restore_folder(folder)
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_that_safetensors_reports_is_recognised(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    with pytest.raises(RunError) as raised, atomic_folder(tmp_path / "a"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert raised.value.code == "disk-full"


def test_files_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    atomic_write(tmp_path / "atomic", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with atomic_folder(tmp_path / "folder") as new:
        (new / "weights").write_text("text")
        (new / "weights").chmod(0o600)
    assert (tmp_path / "folder/weights").stat().st_mode == (tmp_path / "plain").stat().st_mode
