"""The cache folder follows the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch.core.cache import cache_dir


def test_the_cache_folder_is_the_first_that_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETOUCH_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("RETOUCH_CACHE")
    assert cache_dir() == tmp_path / "shared" / "retouch"
    for invalid in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", invalid)
        assert cache_dir() == tmp_path / ".cache" / "retouch"
