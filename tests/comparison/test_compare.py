"""The comparison: its grid, its files, its tables, and what survives a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import retouch
from retouch.cli.app import app
from retouch.comparison.compare import Comparison
from retouch.comparison.summary import Spread, SummaryRow
from retouch.comparison.table import Column, make_table, markdown
from retouch.core.errors import ConfigError, ModelError, RunError
from helpers.fake_methods import model, put_methods, small_concept
from helpers.char_tokenizer import edit

METHODS = ("none", "steering", "retouch")


def run(concept: str, out: Path, **more: Any) -> Comparison:
    options: dict[str, Any] = {"methods": METHODS, "seeds": 2, "labels": 4, "limit": 4} | more
    return retouch.compare(model(), concept, "raise", out=out, **options)


def records(done: Comparison) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in done.records()]


def test_the_grid_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push, events = put_methods(monkeypatch), []
    concept = small_concept(tmp_path / "pack")
    done = run(concept, tmp_path / "out", labels=(4, 5), on_event=events.append)
    assert len(done.results) == 12
    names = {file.name for file in (tmp_path / "out" / "points").iterdir()}
    assert "steering-5-1.json" in names
    assert len(names) == 12
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(values["records"]) == 12 * 4
    assert set(values["records"][0]) == {
        *("method", "labels", "seed", "suite", "metric", "better", "value", "low", "high", "n"),
        "seconds",
    }
    point = json.loads((tmp_path / "out" / "points" / "steering-4-0.json").read_text())
    assert point["rows"]["small/letter_gap"]["groups"] == ["m", "m", "f", "f"]
    assert len(point["rows"]["drift/kl_per_token"]["counts"]) == 4
    # No edit drifts nowhere; the counterparts are the same model, so that nothing tells them apart.
    bare, counterpart = done.lines[0], done.lines[1]
    assert (bare.method, bare.metrics["drift/kl_per_token"].mean) == ("none", 0.0)
    assert counterpart.metrics == done.lines[2].metrics
    same = [one for one in done.paired_tests if one.method == "steering"]
    assert len(same) == 4  # two metrics at two numbers of labels
    assert all((one.p, one.difference.value, one.seeds) == (1.0, 0.0, 2) for one in same)
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "## 4 labels" in page
    assert "p, effect" in page
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert {seed for _, seed in push.applied} == {0, 1}
    assert any("steering, 4 labels, seed 0" in event.detail for event in events)


def test_a_comparison_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, concept = put_methods(monkeypatch), small_concept(tmp_path / "pack")
    whole = run(concept, tmp_path / "whole")
    push.applied.clear()

    def kill(settings: Any, task: Any) -> bool:
        if len(push.applied) > 1:
            raise KeyboardInterrupt
        return False

    push.fails, editable = kill, model()
    with pytest.raises(KeyboardInterrupt):
        retouch.compare(
            editable, concept, methods=METHODS, seeds=2, labels=4, limit=4, out=tmp_path / "cut"
        )
    assert not editable.edited
    assert len(list((tmp_path / "cut" / "points").iterdir())) == 2
    push.applied.clear()
    push.fails = lambda settings, task: False
    again = run(concept, tmp_path / "cut")
    assert len(push.applied) == 3
    assert records(again) == records(whole)
    assert again.paired_tests == whole.paired_tests
    pictures = [(tmp_path / name / "compare.png").read_bytes() for name in ("cut", "whole")]
    assert pictures[0] == pictures[1]
    with pytest.raises(RunError, match=r"limit.*--out"):
        run(concept, tmp_path / "cut", limit=2)


def test_a_method_that_fails_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_methods(
        monkeypatch,
        lambda settings, task: task.config.seed == 1 or task.config.data.num_examples > 4,
    )
    done = run(small_concept(tmp_path / "pack"), tmp_path / "out", labels=(4, 5))
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "steering, seed 1: It fell apart. Push less." in page
    assert "| Push ¹ | – |" in page.split("## 5 labels")[1]
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(values["failed"]) == 2 * (1 + 2)
    assert all(one.seeds == 1 for one in done.paired_tests if one.labels == 4)
    assert not [one for one in done.paired_tests if one.labels == 5]


def test_the_best_is_marked_and_the_unedited_model_wins_nothing() -> None:
    def line(method: str, effect: float, drift: float) -> SummaryRow:
        return SummaryRow(
            method,
            8,
            {"s/e": Spread(effect, effect - 0.1, effect), "d/k": Spread(drift, 0, 1)},
            1,
            {},
        )

    columns = [
        Column("s/e", "effect", "rate", "higher", worst=True),
        Column("d/k", "drift", "nats a token", "lower"),
    ]
    lines = [line("none", 0.9, 0.0), line("a", 0.8, 0.2), line("b", 0.7, 0.1), line("c", 0.8, 0.3)]
    table = make_table(8, lines, columns)
    marked = {
        (row[0].text, at) for row in table.lines for at, point in enumerate(row) if point.best
    }
    assert marked == {("a", 1), ("c", 1), ("b", 2)}
    assert "| a | **80.0 % (70.0 %)** | 0.2 | 1.0 |" in markdown(table)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "none,absent"], "--methods.*absent"),
        (["--labels", "8,many"], "--labels"),
        (["--labels", "1"], "--labels"),
        (["--labels", ""], "--labels"),
        (["--seeds", "0"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--limit", "0"], "--limit"),
        (["--metrics", "some"], "--metrics"),
        (["--direction", "up"], "--direction"),
        (["--tuned", "absent.yaml"], "absent.yaml"),
        (["--robustness", "absent"], "absent"),
    ],
)
def test_bad_input_is_named(options: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["compare", "pocket", *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert re.search(says, result.stderr)


def test_a_model_that_is_edited_or_in_several_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="edited"):
        retouch.compare(
            edit(model(), 0.1), small_concept(tmp_path / "p"), methods=["none"], out=tmp_path / "o"
        )
    with pytest.raises(ConfigError, match="jobs"):
        retouch.compare(model(), methods=["none"], jobs=2)


@pytest.mark.slow
def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every worker gets its share of the cores; for the same bits one process must have as many.
    threads = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    torch.set_num_threads(1)
    options: dict[str, Any] = {"methods": ["none", "self-reminder"], "seeds": 1, "labels": 2}
    options |= {"limit": 4}
    try:
        alone = retouch.compare("pocket", "safety", out=tmp_path / "one", **options)
    finally:
        torch.set_num_threads(threads)
    several = retouch.compare("pocket", "safety", out=tmp_path / "two", jobs=2, **options)
    assert records(alone) == records(several)
    assert [one.rows for one in alone.results] == [one.rows for one in several.results]
