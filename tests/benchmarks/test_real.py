"""`benchmarks.real` on a tiny model and made-up files in the published formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import real
from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.public_data import COUNT, write_requests
from retouch.core.metrics import Metrics
from retouch.core.types import Record, Score
from retouch.evaluation.evaluate import Evaluation
from retouch.evaluation.statistics import each_once
from retouch.models import adapters


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_requests(tmp_path / "data")
    return tmp_path / "data"


def evaluation(base: list[float], edited: list[float], metric: str = "refusal") -> Evaluation:
    """A metric of one suite with these values of its responses."""
    key = (real.HARMLESS_TEMPLATES, metric)
    scores = [Score(sum(one) / len(one), 0.0, 1.0, len(one)) for one in (base, edited)]
    record = Record(*key, "rate", "lower", *scores)
    return Evaluation(Metrics([record]), [], {key: each_once(edited)}, {key: each_once(base)})


def test_responses_that_the_base_shares_are_not_new() -> None:
    found = evaluation([1, 1, 0, 0], [1, 0, 1, 0])
    before, after = real.new("refusal", real.HARMLESS_TEMPLATES)(found)
    assert before is None
    assert after is not None
    assert (after.value, after.n) == (0.25, 4)
    other = evaluation([0, 0], [1, 1], "degenerate")
    assert real.new("degenerate")(other)[1] == real.pooled("degenerate")(other)[1]


def test_rates_of_all_suites_are_pooled() -> None:
    before, after = real.pooled("refusal")(evaluation([1, 0, 0, 0], [1, 1, 1, 0]))
    assert before is not None
    assert after is not None
    assert (before.value, after.value, after.n) == (0.25, 0.75, 4)


def test_the_command_measures_base_and_adapters(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, folder in enumerate(("run", "other")):
        editable = add_random_adapter(char_editable(), 0.3 + seed)
        adapters.save(editable, tmp_path / folder)
    monkeypatch.setattr(real, "load", lambda *_: char_editable())
    out = tmp_path / "out" / "real.json"
    words = ["--data-dir", str(data), "--limit", "2", "--max-new-tokens", "4", "--out", str(out)]
    words += ["--adapter", str(tmp_path / "run"), "--adapter", str(tmp_path / "other")]
    real.main([*words, "--few-labels"])
    assert "| KL a token, harmless" in capsys.readouterr().out
    values = json.loads(out.read_text("utf-8"))
    assert len(values["adapters"]) == 2
    figures = {figure["figure"]: figure for figure in values["figures"]}
    assert figures["KL a token, harmless"]["mean"] > 0
    assert len(figures["refused: JailbreakBench"]["edited"]) == 2
    assert figures["refused: JailbreakBench"]["target"] == 0.80
    assert figures["refused in templates"]["target"] is None
    assert figures["refused in templates"]["base"]["n"] == 2 * 6
    responses = values["responses"]
    by_model = {
        model: sum(one["model"] == model for one in responses)
        for model in {one["model"] for one in responses}
    }
    assert set(by_model) == {"base", *values["adapters"]}
    assert set(by_model.values()) == {8 * 2 + 2 * 6 * 2}
    assert "Do bad" not in json.dumps(values)  # requests by id only
    assert {one["id"] for one in responses if one["suite"] == "jailbreakbench"} == {
        "0",
        str(COUNT // 2),
    }


def test_wrong_options_end_the_program(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "load", lambda *_: char_editable())
    words = ["--data-dir", str(data), "--adapter", str(tmp_path / "none")]
    with pytest.raises(SystemExit):
        real.main([*words, "--limit", "0"])
    assert "--limit must be at least 1, got 0." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        real.main(words)
    assert "There is no adapter in" in capsys.readouterr().err
