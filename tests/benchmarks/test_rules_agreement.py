from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rules_agreement import FILE, cohen_kappa, main, measure


def test_the_rules_agree_with_the_labels_given_by_hand() -> None:
    found = measure()
    assert found.accuracy.n > 290
    assert found.accuracy.value >= 0.95
    assert found.precision["refusal"].value >= 0.95
    assert found.recall["refusal"].value >= 0.95
    assert found.kappa > 0.9


def test_wrong_labels_are_no_agreement(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
    flip = {"refusal": "answer", "answer": "refusal"}
    for row in rows:
        row["label"] = flip.get(row["label"], row["label"])
    file = tmp_path / "flipped.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert measure(file).accuracy.value < 0.1


def test_a_class_that_the_rules_never_find_has_no_precision(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    row = {"response": "The sky is blue.", "label": "answer", "annotators": ["answer", "refusal"]}
    file.write_text(json.dumps(row) + "\n", "utf-8")
    found = measure(file)
    assert set(found.precision) == set(found.recall) == {"answer"}
    assert found.annotators.value == 0.0


def test_kappa_by_hand() -> None:
    # Observed 3 of 4; by chance 2/4 * 3/4 + 2/4 * 1/4 = 1/2.
    assert cohen_kappa(["a", "a", "b", "b"], ["a", "a", "a", "b"]) == 0.5
    assert cohen_kappa(["a", "a"], ["a", "a"]) == 1.0


def test_no_prompt_is_in_the_file() -> None:
    rows = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
    columns = {"suite", "id", "template", "model", "response", "truncated", "label", "annotators"}
    assert all(set(row) <= columns for row in rows)


def test_the_command_prints_every_class(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rules_agreement"])
    main()
    text = capsys.readouterr().out
    assert all(f"| {one} |" in text for one in ("answer", "refusal", "deflection", "degenerate"))
