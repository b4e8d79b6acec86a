"""Files and folders are replaced in one step: after a failure the old content is unchanged."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from retouch.core import atomic
from retouch.core.atomic import (
    atomic_folder,
    atomic_write,
    is_free,
    leftovers,
    restore_folder,
    sweep,
)
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


def test_the_folder_of_a_renamed_file_or_folder_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        found = os.fstat(handle)
        calls.append("folder" if os.path.samestat(found, tmp_path.stat()) else "other")
        real_sync(handle)

    def replace(source: Any, target: Any) -> None:
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(tmp_path / "file", "text")
    assert calls == ["other", "rename", "folder"]
    calls.clear()
    with atomic_folder(tmp_path / "new") as new:
        (new / "file").write_text("text")
    assert calls == ["other", "other", "rename", "folder"]  # the file, its folder


def test_a_file_larger_than_the_limit_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SafetensorError(Exception):
        pass

    for error in (OSError(errno.EFBIG, "x"), SafetensorError("File too large (os error 27)")):
        match = "limit of file sizes"
        with pytest.raises(RunError, match=match) as raised, atomic_folder(tmp_path / "a"):
            raise error
        assert raised.value.code == "disk-full"


def test_leftovers_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    ours = [".run.json.0123abcd.new", ".adapter.89abcdef.new", ".discriminator.previous"]
    others = [".run.json.new", "run.json.0123abcd.new", ".a.0123ABCD.new", ".b.previous", "x"]
    (tmp_path / ours[0]).write_text("{")
    for name in ours[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("old")
    for name in others:
        (tmp_path / name).write_text("theirs")
    inside = tmp_path / "folder"
    inside.mkdir()
    (inside / ours[0]).write_text("of another folder")
    link = tmp_path / ".link.0123abcd.new"
    link.symlink_to(inside)
    assert sorted(one.name for one in leftovers(tmp_path)) == sorted(ours)
    sweep(tmp_path)
    # The old folder is restored, since it was replaced by nothing.
    expected = {*others, "folder", link.name, "discriminator"}
    assert {one.name for one in tmp_path.iterdir()} == expected
    assert (tmp_path / "discriminator/weights").read_text() == "old"
    assert (inside / ours[0]).exists()
    (tmp_path / ours[2]).mkdir()
    sweep(tmp_path)
    assert not (tmp_path / ours[2]).exists()
    assert (tmp_path / "discriminator/weights").read_text() == "old"


def test_a_folder_with_leftovers_alone_is_free(tmp_path: Path) -> None:
    for name in (".config.yaml.0123abcd.new", ".lock"):
        (tmp_path / name).touch()
    assert is_free(tmp_path, leftovers=True)
    assert not is_free(tmp_path)
    (tmp_path / "letter").touch()
    assert not is_free(tmp_path, leftovers=True)
