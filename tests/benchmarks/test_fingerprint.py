from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import fingerprint
from benchmarks.fingerprint import Fingerprint
from retouch.core.types import Record, Score

RECORDED_FILE = Path(fingerprint.__file__).with_suffix(".json")
ENVIRONMENT = {"torch": "2.0", "cpu": "x", "threads": torch.get_num_threads()}


def score(value: float) -> Score:
    return Score(value, value - 0.1, value + 0.1, 10)


def record(metric: str, before: float, after: float) -> Record:
    return Record("suite", metric, "rate", "higher", score(before), score(after))


RECORDED = Fingerprint(
    ENVIRONMENT,
    {"pocket-safety": "a", "tone": "b"},
    (record("one", 0.2, 0.8), record("two", 0.5, 0.5)),
)


def run_command(
    monkeypatch: pytest.MonkeyPatch, found: Fingerprint, *words: str
) -> tuple[int, list[str], bool]:
    """Run the command with `found` as the result of the edits.

    Returns:
        The exit code, the names of the edits and whether one of them was to be measured.
    """
    calls: list[tuple[list[str], bool]] = []

    def run_edits(names: Iterable[str], *, measure: bool) -> Fingerprint:
        calls.append((list(names), measure))
        return found

    monkeypatch.setattr(fingerprint, "run_edits", run_edits)
    code = fingerprint.main(list(words))
    ((names, measure),) = calls
    return code, names, measure


def test_hash_depends_on_names_shapes_and_values_but_not_on_the_order(tmp_path: Path) -> None:
    a, b = torch.arange(6.0), torch.ones(2, 2, dtype=torch.bfloat16)

    def digest(**tensors: torch.Tensor) -> str:
        file = tmp_path / "weights.safetensors"
        save_file(tensors, file)
        return fingerprint.hash_weights(file)

    first = digest(a=a, b=b)
    assert digest(b=b, a=a) == first
    changed = a.clone()
    changed[0] = torch.nextafter(a[0], torch.tensor(1.0))
    different = [digest(a=a), digest(a=changed, b=b), digest(a=a.reshape(2, 3), b=b)]
    assert len({first, *different, digest(a=a, c=b)}) == 5


def test_file_is_read_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "fingerprint.json"
    fingerprint.write_fingerprint(file, RECORDED)
    assert fingerprint.read_fingerprint(file) == RECORDED
    file.write_text("{}")
    with pytest.raises(ValueError, match="adapters"):
        fingerprint.read_fingerprint(file)


def test_the_recorded_file_has_all_edits_and_metrics() -> None:
    recorded = fingerprint.read_fingerprint(RECORDED_FILE)
    assert list(recorded.adapters) == list(fingerprint.EDITS)
    assert all(len(digest) == 64 for digest in recorded.adapters.values())
    assert set(recorded.environment) == set(fingerprint.ENVIRONMENT)
    assert len(recorded.metrics) == 33
    assert all(one.after is not None for one in recorded.metrics)


def test_equal_fingerprints_have_no_difference() -> None:
    report, identical = fingerprint.compare(RECORDED, RECORDED)
    assert identical
    assert report.splitlines()[0] == "2 of 2 adapters bit-identical"
    assert report.splitlines()[1].startswith("0 of 4 metric values differ, 0 outside")
    assert len(report.splitlines()) == 2


def test_an_adapter_that_differs_or_is_not_recorded_is_named() -> None:
    found = dataclasses.replace(RECORDED, adapters={"pocket-safety": "a", "tone": "c", "new": "d"})
    report, identical = fingerprint.compare(RECORDED, found)
    assert not identical
    assert report.splitlines()[0] == "1 of 3 adapters bit-identical"
    assert fingerprint.changed_adapters(RECORDED, found) == ["tone", "new"]


def test_some_edits_are_compared_alone_and_metrics_only_if_measured() -> None:
    found = Fingerprint(ENVIRONMENT, {"tone": "b"}, ())
    assert fingerprint.compare(RECORDED, found) == ("1 of 1 adapters bit-identical", True)


def test_metrics_that_differ_are_inside_or_outside_of_the_interval() -> None:
    found = (record("one", 0.2, 0.85), record("two", 0.3, 0.5))
    inside, outside = fingerprint.changed_metrics(RECORDED.metrics, found)
    assert inside.name == "suite/one (edited)"
    assert not inside.outside
    assert outside.name == "suite/two (base)"
    assert outside.outside
    report, identical = fingerprint.compare(RECORDED, dataclasses.replace(RECORDED, metrics=found))
    assert identical
    assert "2 of 4 metric values differ, 1 outside" in report
    assert report.count("OUTSIDE") == 1


def test_a_metric_that_is_missing_or_new_is_outside() -> None:
    found = (record("one", 0.2, 0.8), record("three", 0.5, 0.5))
    differences = fingerprint.changed_metrics(RECORDED.metrics, found)
    assert [one.name for one in differences] == [
        "suite/two (base)",
        "suite/two (edited)",
        "suite/three (base)",
        "suite/three (edited)",
    ]
    assert all(one.outside for one in differences)
    assert all(one.row().count("|") == 6 for one in differences)


def test_another_environment_is_reported() -> None:
    found = dataclasses.replace(RECORDED, environment={**ENVIRONMENT, "torch": "2.1"})
    report, identical = fingerprint.compare(RECORDED, found)
    assert identical
    assert "torch: recorded 2.0, here 2.1" in report


def test_check_exits_with_1_where_an_adapter_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fingerprint.json"
    run_command(monkeypatch, RECORDED, "--write", str(file))
    words = ("--check", str(file))
    result = run_command(monkeypatch, RECORDED, *words)
    assert result == (0, list(fingerprint.EDITS), True)
    assert "2 of 2 adapters bit-identical" in capsys.readouterr().out
    found = dataclasses.replace(RECORDED, adapters={"pocket-safety": "z"})
    result = run_command(monkeypatch, found, *words, "--only", "pocket-safety", "--adapters-only")
    assert result == (1, ["pocket-safety"], False)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--write", "a", "--check", "b"],
        ["--check", "missing.json"],
        ["--write", "a", "--only", "mood"],
    ],
)
def test_wrong_options_end_the_command_before_any_edit(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "run_edits", None)
    with pytest.raises(SystemExit) as ended:
        fingerprint.main(words)
    assert ended.value.code == 2
