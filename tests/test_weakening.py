"""What weakens a model's safety needs the caller's reason, whatever it is called."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

import retouch
from helpers.command_line import call
from helpers.pocket_edit import small_settings
from helpers.tiny_edit import STATES_ALONE
from retouch import merging
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.core.errors import ConfigError, RefusedError, RunError
from retouch.core.run_dir import ADAPTER_WEIGHTS, RunDir
from retouch.reporting.export import export

REASON = "red team of our own filter"
SETTINGS = small_settings(
    {
        **STATES_ALONE,
        "train.rounds": 1,
        "train.steps_per_round": 16,
        "train.learning_rate": 0.02,
        "loss.retain_weight": 0.0,
        "lora.r": 8,
        "evaluation.suites": "none",
        "data.ignore_contrast": True,
    }
)


@pytest.fixture(scope="module")
def weakened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that weakens safety, with a reason."""
    return retouch.edit(
        concept="pocket-safety",
        direction="lower",
        config=SETTINGS,
        allow_weakening=REASON,
        output_dir=tmp_path_factory.mktemp("runs") / "weakened",
    ).path


@pytest.fixture
def copied(weakened: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test changes."""
    return Path(shutil.copytree(weakened, tmp_path / "copied"))


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def as_harmless(run: Path) -> None:
    """Let a run claim to be an edit of another concept, without a reason."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values |= {"concept": "pocket-tone", "direction": "raise", "allow_weakening": None}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    change_json(run / "run.json", lambda facts: facts["concept"].update(name="tone", weakens=None))


def refused(action: Callable[[], object]) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        action()
    assert (raised.value.code, raised.value.exit_code) == ("weakening", 7)
    return raised.value


def test_the_reason_and_both_figures_are_on_the_card(weakened: Path) -> None:
    card = (weakened / "README.md").read_text()
    assert REASON in card
    assert "safety-weakened" in card
    probe = RunDir.open(weakened).provenance()["safety"]["probe"]
    assert set(probe["weakened"]) == {"refused", "refusal_log_odds"}
    for record in probe["metrics"]:
        assert record["after"]["value"] < record["before"]["low"]
    assert "56.2 % -\\> " in card


def swapped_labels(folder: Path) -> str:
    """A user's file that moves refused requests towards answered ones."""
    concept = load_concept("pocket-safety")
    file = folder / "mine.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["prompt", "label", "pair"])
        for label, mine in (("direct", "negative"), ("attack", "positive"), ("benign", "retain")):
            for one in concept.select("train", [label])[:40]:
                writer.writerow([one.last_turn, mine, one.pair if mine != "retain" else ""])
    return str(file)


def renamed_pack(folder: Path) -> str:
    """A copy of the safety pack under another name, its directions swapped, weakening nothing."""
    save_pack(load_concept("pocket-safety"), folder / "pack")
    file = folder / "pack" / "concept.yaml"
    values = yaml.safe_load(file.read_text())
    values |= {"name": "politeness", "weakens": None, "settings": {}}
    directions = values["directions"]
    directions["raise"], directions["lower"] = directions["lower"], directions["raise"]
    file.write_text(yaml.safe_dump(values))
    return str(folder / "pack")


@pytest.mark.parametrize("concept", [swapped_labels, renamed_pack])
def test_an_edit_that_weakens_under_another_name_is_refused(
    tmp_path: Path, concept: Callable[[Path], str]
) -> None:
    path = tmp_path / "run"
    error = refused(
        lambda: retouch.edit("pocket", concept=concept(tmp_path), config=SETTINGS, output_dir=path)
    )
    assert "refused 56.2 % -> " in error.message
    assert str(path) in error.hint
    assert not (path / "adapter").exists()
    with pytest.raises(RunError):
        export(RunDir.open(path), "peft", tmp_path / "out")
    refused(lambda: retouch.resume(path, "pocket"))
    done = retouch.resume(path, "pocket", allow_weakening=REASON)
    assert REASON in (done.path / "README.md").read_text()
    assert done.config.allow_weakening == RunDir.open(path).config().allow_weakening == REASON


def test_a_declared_weakening_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    concept, file = "pocket-safety", tmp_path / "shared.yaml"
    refused(lambda: retouch.edit(concept=concept, direction="lower"))
    refused(lambda: retouch.edit(concept=concept, direction="lower", allow_weakening=" "))
    file.write_text(yaml.safe_dump({"allow_weakening": "because a file says so"}))
    with pytest.raises(ConfigError) as raised:
        retouch.edit(concept=concept, direction="lower", config=file)
    assert raised.value.code == "caller-only"


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_an_export_asks_again(weakened: Path, tmp_path: Path, format: Any) -> None:
    run = RunDir.open(weakened)
    refused(lambda: export(run, format, tmp_path / "out", model="pocket"))
    assert not (tmp_path / "out").exists()
    result = call("export", str(weakened), "--format", format, "--model", "pocket", "--out", "out")
    assert result.exit_code == 7
    export(run, format, tmp_path / "out", model="pocket", allow_weakening="an audit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert REASON in card
    assert "an audit" in card


def test_a_run_that_claims_to_be_harmless_is_refused(copied: Path, tmp_path: Path) -> None:
    as_harmless(copied)
    refused(lambda: export(RunDir.open(copied), "peft", tmp_path / "out"))


def test_an_export_without_a_record_is_measured(copied: Path, tmp_path: Path) -> None:
    as_harmless(copied)
    change_json(copied / "run.json", lambda facts: facts.pop("safety"))
    run = RunDir.open(copied)
    with pytest.raises(ConfigError) as raised:
        export(run, "peft", tmp_path / "out")
    assert raised.value.code == "models-differ"
    refused(lambda: export(run, "peft", tmp_path / "out", model="pocket"))


def test_an_adapter_that_was_replaced_is_measured(copied: Path, tmp_path: Path) -> None:
    as_harmless(copied)

    def claim(facts: dict[str, Any]) -> None:
        facts["safety"]["probe"]["weakened"] = []
        facts["safety"]["adapter"] = "0" * 64

    change_json(copied / "run.json", claim)
    refused(lambda: export(RunDir.open(copied), "peft", tmp_path / "out", model="pocket"))


def test_a_sum_of_a_weakened_run_is_refused(weakened: Path, copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "sum"
    refused(lambda: merging.merge([weakened], out, model="pocket", limit=2))
    as_harmless(copied)
    refused(lambda: merging.merge([copied], out, model="pocket", limit=2))
    assert not out.exists()
    merging.merge([copied], out, model="pocket", limit=2, allow_weakening=REASON)
    card = (out / "README.md").read_text()
    assert REASON in card
    assert "refused 56.2 % -\\> " in card


def test_a_negative_weight_of_a_hardened_run_is_refused(copied: Path, tmp_path: Path) -> None:
    as_harmless(copied)
    file = copied / "adapter" / ADAPTER_WEIGHTS
    weights = load_file(file)
    # The opposite of the update is what a hardening edit may have.
    save_file({k: -v if "lora_B" in k else v for k, v in weights.items()}, file)
    refused(lambda: merging.merge([copied], tmp_path / "sum", [-1.0], model="pocket", limit=2))


def test_an_edit_that_hardens_needs_no_reason(copied: Path, tmp_path: Path) -> None:
    as_harmless(copied)
    file = copied / "adapter" / ADAPTER_WEIGHTS
    save_file({k: v * 0 for k, v in load_file(file).items()}, file)
    export(RunDir.open(copied), "peft", tmp_path / "out", model="pocket")
    assert "None of them dropped" in (tmp_path / "out" / "README.md").read_text()
