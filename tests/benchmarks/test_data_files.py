from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data_files


def test_every_format_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data_files.json"
    data_files.main(["--examples", "200", "--only", "csv,messages", "--out", str(out)])
    written = json.loads(out.read_text("utf-8"))
    assert [one["format"] for one in written["records"]] == ["csv", "messages"]
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 2**20 for one in written["records"])
    assert len(written["targets"]) == 4
    assert "| messages | 200 |" in capsys.readouterr().out


def test_too_few_examples_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_files.main(["--examples", "3"])
    assert "--examples must be at least 100" in capsys.readouterr().err
