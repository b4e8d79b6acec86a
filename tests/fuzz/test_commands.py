"""Some cases of `make fuzz`, and what it calls a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import __main__ as fuzz
from fuzz.cases import Case
from fuzz.sandbox import Finished

CASES = 12


@pytest.mark.slow
def test_bad_input_ends_in_a_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fuzz.main(["--cases", str(CASES), "--seed", "7", "--workers", "1"]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all "))
    assert total.split() == ["all", str(CASES), "0", "0", "0"]


def case(*, invalid: bool) -> Case:
    return Case("option", ("doctor", "pocket"), invalid=invalid)


@pytest.mark.parametrize(
    ("finished", "invalid", "expected"),
    [
        (Finished(2, "Error: no.", False), True, ""),
        (Finished(0, "Done.", False), False, ""),
        (Finished(0, "", False), False, ""),
        (Finished(0, "Done.", False), True, "accepted"),
        (Finished(1, "Traceback (most recent call last):\n  ...", False), True, "traceback"),
        (Finished(-11, "", False), True, "traceback"),
        (Finished(1, "", False), True, "traceback"),
        (Finished(-9, "loading", True), True, "hang"),
    ],
)
def test_what_is_a_fault(finished: Finished, invalid: bool, expected: str) -> None:
    assert fuzz.fault(case(invalid=invalid), finished) == expected


def test_a_fault_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "kind": "option",
        "fault": "accepted",
        "case": 3,
        "words": ("doctor",),
        "output": "Done.",
    }
    assert fuzz.report([{"kind": "option", "fault": ""}, record]) == 1
    out = capsys.readouterr().out
    assert "case 3, option, accepted:\ndoctor\nDone." in out
    assert out.splitlines()[-2].split() == ["all", "2", "0", "0", "1"]
    assert fuzz.report([{"kind": "option", "fault": ""}]) == 0
