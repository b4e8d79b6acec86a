from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import step


def test_every_variant_is_timed_on_the_same_chats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    words = ["--model", "pocket", "--concept", "pocket-safety", "--repeats", "1"]
    step.main([*words, "--device", "cpu", "--out", str(out)])
    written = json.loads(out.read_text("utf-8"))
    found = {one["variant"]: one for one in written["records"]}
    assert found.keys() == {"plain", "segment", "logits"}
    assert len({(one["chats"], one["tokens"]) for one in found.values()}) == 1
    assert found["plain"]["ratio_to_plain"] == 1
    assert all(one["seconds"] > 0 for one in found.values())
    assert len(written["targets"]) == 2
    assert "| logits |" in capsys.readouterr().out


def test_a_wrong_number_of_repeats_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["--repeats", "0"])
    assert "--repeats must be at least 1" in capsys.readouterr().err
