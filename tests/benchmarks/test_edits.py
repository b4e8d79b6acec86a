"""The benchmarks that make edits with the command line: options, rows, and reuse of runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation, common, pocket_card, resume, targets
from benchmarks.common import Target
from benchmarks.targets import Measured, at_least, at_most
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config_file import resolve
from retouch.core.options import OPTIONS, nest
from retouch.core.types import Record, Sample, Score
from retouch.evaluation.robustness import ATTACKS

BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}


def check_options(options: Mapping[str, Any]) -> None:
    """Check that these are options of `retouch edit` with valid values."""
    values = {}
    for key, value in options.items():
        option = BY_FLAG[f"--{key}"]
        values[option.path] = option.parse(str(value))
    resolve(nest(values))


def score(value: float, width: float = 0.0) -> Score:
    return Score(value, value - width, value + width, 10)


def measured(**values: tuple[float, float]) -> Measured:
    """Metrics with values before and after."""
    return Measured(
        {
            name: Record("suite", name, "rate", "higher", score(before), score(after))
            for name, (before, after) in values.items()
        }
    )


def test_edits_have_valid_options_concepts_and_attacks() -> None:
    concepts = {name: load_concept(name) for name in builtin_names()}
    for edit in targets.EDITS:
        check_options(edit.options)
        assert edit.direction in concepts[edit.concept].directions
        assert set(edit.attacks) <= set(ATTACKS)
        assert edit.values
    assert len(targets.BY_NAME) == len(targets.EDITS)
    assert "--retain-concepts" in BY_FLAG


def test_source_filters_name_groups_of_training_examples() -> None:
    for edit in targets.EDITS:
        if label := edit.options.get("source-filter"):
            assert load_concept(edit.concept).select("train", [label])


def test_values_that_are_metrics_are_declared_by_a_concept() -> None:
    declared = {spec.metric for name in builtin_names() for spec in load_concept(name).metrics}
    for metric in ablation.METRICS:
        assert metric in declared
    for one in pocket_card.BEHAVIOURS:
        assert one.metric in declared
    run = measured(**dict.fromkeys(declared, (0.5, 0.5)))
    for edit in targets.EDITS:
        for value in edit.values:
            if not edit.attacks and "seconds" not in value.name:
                assert 0 <= value.read(run) <= 1


def test_parts_have_valid_options() -> None:
    assert ablation.PARTS["none"] == {}
    for options in ablation.PARTS.values():
        check_options(options)


def test_values_are_read_from_metrics_curves_and_text_quality() -> None:
    curve = {"along": "steps", "metric": "attack_refusal", "points": [[20, {"value": 0.4}]]}
    points = [[at, {"value": value}] for at, value in ((0.0, 0.1), (0.5, 0.6), (1.0, 0.5))]
    sweep = {"along": "strength", "metric": "attack_refusal", "points": points}
    quality = {"metric": "self_bleu", "before": {"high": 0.3}, "after": {"low": 0.5}}
    run = Measured(
        measured(one=(0.5, 0.25), two=(0.5, 0.75)).records,
        {"curves": [curve, sweep], "records": [quality]},
    )
    assert targets.after("one")(run) == 0.25
    assert targets.after("one", "two")(run) == 0.5
    assert targets.drop("one")(run) == 0.25
    assert targets.share_kept("two")(run) == 1.5
    assert targets.finetuned(20)(run) == 0.4
    assert targets.largest_fall("attack_refusal")(run) == pytest.approx(0.1)
    assert targets.increase("self_bleu")(run) == pytest.approx(0.2)


def test_a_row_has_the_mean_and_the_worst_seed_beside_the_target() -> None:
    high, low = at_least("a", 0.9, 0.8), at_most("b", 0.1)
    assert targets.row("x", high, [1.0, 0.85]).endswith("| 0.9250 | 0.8500 | ≥ 0.9 / 0.8 | yes |")
    assert targets.row("x", high, [1.0, 0.79]).endswith("| ≥ 0.9 / 0.8 | NO |")
    assert targets.row("x", low, [0.0, 0.3]).endswith("| 0.1500 | 0.3000 | ≤ 0.1 | NO |")
    assert targets.row("x", at_most("c"), [0.0]).endswith("| none |  |")


def test_a_target_is_met_from_its_threshold_on() -> None:
    assert Target("", 1.0, 1.0).met
    assert Target("", 1.0, 1.0, higher=False).met
    assert not Target("", 1.2, 1.1, higher=False).met
    assert not Target("", 1.0, 1.1).met


def test_a_finished_run_and_its_output_are_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(command)
        if "edit" in command:
            path = Path(command[command.index("--out") + 1])
            path.mkdir()
            (path / "config.yaml").write_text("{}")
            (path / "run.json").write_text('{"done": true}')
        return subprocess.CompletedProcess(command, 0, stdout=b'{"records": []}')

    monkeypatch.setattr(common.subprocess, "run", run)
    for _ in range(2):
        edited = common.edit_run(tmp_path / "a", "pocket-safety", "raise", {"seed": 1})
        output = common.command_json(tmp_path / "b.json", "robustness")
    assert edited.finished
    assert output == json.loads((tmp_path / "b.json").read_text()) == {"records": []}
    edit, robustness = calls
    assert edit[edit.index("--seed") + 1] == "1"
    assert robustness[-1] == "--json"


def test_an_unfinished_run_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "config.yaml").write_text("{}")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert not path.exists()
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(common.subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        common.edit_run(path, "pocket-safety", "raise", {})


def test_runs_are_compared_without_timings_and_checkpoints(tmp_path: Path) -> None:
    def write(name: str, seconds: float, weights: bytes = b"w") -> Path:
        run = tmp_path / name
        for folder in ("adapter", "discriminator", "checkpoints"):
            (run / folder).mkdir(parents=True)
        (run / "adapter" / "adapter_model.safetensors").write_bytes(weights)
        (run / "discriminator" / "discriminators.safetensors").write_bytes(b"d")
        (run / "checkpoints" / "training.safetensors").write_bytes(name.encode())
        (run / "events.jsonl").write_text(json.dumps({"round": 1, "seconds": seconds}) + "\n")
        return run

    whole = resume.contents(write("whole", 1.0))
    assert resume.contents(write("same", 2.0)) == whole
    assert resume.contents(write("different", 1.0, b"v")) != whole
    assert len(whole) == 3


def test_the_card_has_a_row_for_each_behaviour_task_and_layer() -> None:
    records = [
        Record("suite", one.metric, "rate", "higher", score(0.97)) for one in pocket_card.BEHAVIOURS
    ]
    samples = [
        Sample("capability", "task_accuracy", "base", (), "", "", value, group=group)
        for group, value in (("sort", 1.0), ("count", 0.0), ("count", 1.0))
    ]
    text = pocket_card.tables(records, samples, [score(0.1), score(0.95)])
    assert f"| {pocket_card.BEHAVIOURS[0].name} | 0.970 | 0.970-0.970 | 10 | ≥ 0.97 | yes |" in text
    assert "| harmful, under attack: refused | 0.970 | 0.970-0.970 | 10 | ≤ 0.1 | NO |" in text
    assert "| attacks refused after patching layer 1 of 0-1 | 0.950 |" in text
    assert "| count | 0.500 | 2 |" in text
    assert "| 0 | 0.100 | 10 |" in text


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (ablation.main, ["--parts", "game"]),
        (targets.main, ["--only", "safety,mood"]),
        (targets.main, ["--seeds", "many"]),
    ],
)
def test_wrong_options_end_the_command(command: Any, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    assert ended.value.code == 2
