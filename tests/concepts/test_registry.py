"""Concepts are found by name or path, and a pack's mistakes are named with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.errors import DataError
from retouch.core.types import SPLITS

CAPABILITY: dict[str, Any] = {
    "name": "capability",
    "title": "Tasks",
    "description": "Tasks.",
    "metrics": [
        {"suite": "drift", "metric": "kl", "labels": ["capability"], "scorer": "kl_tokens"},
    ],
}
COLOUR: dict[str, Any] = {
    "name": "colour",
    "title": "Colour",
    "description": "Red or blue.",
    "uses": ["capability"],
    "sides": {"raise": {"source": ["red"], "target": ["blue"], "hold": ["capability"]}},
    "settings": {"raise": {"layers": [1, 2], "lr": "0.001"}},
    "metrics": [
        {"suite": "colour", "metric": "red", "labels": ["red"], "scorer": "answer"},
        {"suite": "drift", "metric": "kl", "labels": ["red"], "scorer": "kl_tokens"},
    ],
}


def write_pack(folder: Path, pack: dict[str, Any], labels: list[str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "concept.yaml").write_text(yaml.safe_dump(pack))
    for split in SPLITS:
        rows = [{"prompt": f"{split} {label}", "label": label} for label in labels]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built-in packs `colour` and `capability`, in place of the real ones."""
    folder = tmp_path / "packs"
    write_pack(folder / "capability", CAPABILITY, ["capability"])
    write_pack(folder / "colour", COLOUR, ["red", "blue"])
    monkeypatch.setattr(catalog, "packs", lambda: folder)
    return folder


def own_file(folder: Path) -> Path:
    path = folder / "mine.csv"
    rows = [f"{label} {i},{label}" for label in ("positive", "negative") for i in range(10)]
    path.write_text("\n".join(["prompt,label", *rows]))
    return path


def test_the_built_in_concepts_are_there() -> None:
    assert builtin_names() == [
        "capability",
        "gender-bias",
        "one-attack",
        "prefill",
        "safety",
        "tampering",
        "tone",
        "truthfulness",
    ]


def test_a_used_pack_brings_its_rows_and_metrics_once(packs: Path) -> None:
    concept = load_concept("colour")
    for split in SPLITS:
        assert [row.label for row in concept.examples[split]] == ["red", "blue", "capability"]
    # `drift.kl` of the concept's own wins over that of the pack it uses.
    assert [(m.metric, m.labels) for m in concept.metrics] == [("red", ("red",)), ("kl", ("red",))]
    assert concept.settings == {"raise": {"layers": (1, 2), "lr": 0.001}}


def test_a_folder_its_yaml_and_the_name_load_the_same(packs: Path) -> None:
    by_name = load_concept("colour")
    for path in (packs / "colour", packs / "colour" / "concept.yaml"):
        assert load_concept(str(path)).hash == by_name.hash


def test_an_own_file_uses_everyday(packs: Path, tmp_path: Path) -> None:
    concept = load_concept(str(own_file(tmp_path)))
    assert [row.label for row in concept.examples["test"]].count("capability") == 1
    assert [metric.scorer for metric in concept.metrics][-1] == "kl_tokens"
    assert concept.hash != load_concept("capability").hash


def test_the_hash_hangs_on_content_alone(packs: Path, tmp_path: Path) -> None:
    pack = {**COLOUR, "name": "mine"}
    one = load_concept(str(write_pack(tmp_path / "one", pack, ["red", "blue"])))
    two = load_concept(str(write_pack(tmp_path / "two", pack, ["red", "blue"])))
    assert one.hash == two.hash
    assert len(one.hash) == 64
    (tmp_path / "two" / "test.jsonl").write_text('{"prompt": "else", "label": "red"}')
    assert load_concept(str(tmp_path / "two")).hash != one.hash


def test_an_unknown_name_is_answered_with_the_nearest(packs: Path) -> None:
    with pytest.raises(DataError) as inputs:
        load_concept("color")
    for said in ("`color`", "Did you mean `colour`?", "`capability`", ".csv"):
        assert said in str(inputs.value)


@pytest.mark.parametrize("path", ["gone.csv", "gone.yaml"])
def test_a_missing_path_is_named(packs: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=rf"no file .*{path}"):
        load_concept(str(tmp_path / path))


def test_a_pack_without_a_split_names_the_file(packs: Path) -> None:
    (packs / "colour" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file .*colour.validation\.jsonl"):
        load_concept("colour")


METRIC = COLOUR["metrics"][0]
MISTAKES = {
    "unknown key": ({"titel": "x"}, ["key `titel`", "Did you mean `title`?"]),
    "missing key": ({"title": None}, ["key `title`", "not None"]),
    "unknown direction": (
        {"sides": {"rise": {}}},
        ["key `direction_spec.rise`", "'raise' or 'lower'"],
    ),
    "unknown key of a side": (
        {"sides": {"raise": {**COLOUR["sides"]["raise"], "holds": []}}},
        ["key `direction_spec.raise.holds`", "Did you mean `hold`?"],
    ),
    "a side's label": (
        {"sides": {"raise": {**COLOUR["sides"]["raise"], "target": ["blu"]}}},
        ["key `direction_spec.raise.target`", "`blu`", "Did you mean `blue`?"],
    ),
    "a metric's label": (
        {"metrics": [{**METRIC, "labels": ["rad"]}]},
        ["key `metrics.red`", "`rad`", "Did you mean `red`?"],
    ),
    "unknown key of a metric": (
        {"metrics": [{**METRIC, "label": "x"}]},
        ["key `metrics.0.label`", "Did you mean `labels`?"],
    ),
    "unknown scorer": (
        {"metrics": [{**METRIC, "scorer": "refusal"}]},
        ["key `metrics.0`", "`refusal`", "Did you mean `refuse`?"],
    ),
    "a lean with one choice": (
        {"metrics": [{**METRIC, "scorer": "lean", "choices": ["he"]}]},
        ["key `metrics.0`", "two `choices`"],
    ),
    "a gap without groups": (
        {"metrics": [{**METRIC, "scorer": "gap", "choices": ["he", "she"]}]},
        ["key `metrics.0`", "two `groups`"],
    ),
    "a metric twice": ({"metrics": [METRIC, METRIC]}, ["key `metrics`", "`colour.red`", "twice"]),
    "unknown setting": (
        {"settings": {"raise": {"rnak": 3}}},
        ["key `settings.raise`", "`rnak`", "Did you mean `rank`?"],
    ),
    "a setting's value": (
        {"settings": {"raise": {"rank": 0}}},
        ["key `settings.raise`", "`rank`", "greater than or equal to 1"],
    ),
    "unknown pack": ({"uses": ["everday"]}, ["key `uses`", "Did you mean `capability`?"]),
    "a circle": ({"uses": ["colour"]}, ["key `uses`", "colour -> colour"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_pack_mistake_is_named_with_file_key_and_mend(packs: Path, name: str) -> None:
    change, said = MISTAKES[name]
    file = packs / "colour" / "concept.yaml"
    file.write_text(yaml.safe_dump({**COLOUR, **change}))
    with pytest.raises(DataError) as inputs:
        load_concept("colour")
    for part in [str(file), *said]:
        assert part in str(inputs.value)
    assert inputs.value.hint


def test_a_key_that_is_missing_is_named(packs: Path) -> None:
    file = packs / "colour" / "concept.yaml"
    file.write_text("name: colour\ntitle: Colour\n")
    with pytest.raises(DataError, match="key `description`: it is missing"):
        load_concept("colour")


@pytest.mark.parametrize(
    ("text", "said"), [("name: [a\ntitle: b", "line 2: not YAML"), ("- a", "no mapping")]
)
def test_a_file_that_is_no_yaml_mapping_is_named(packs: Path, text: str, said: str) -> None:
    file = packs / "colour" / "concept.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=said) as inputs:
        load_concept("colour")
    assert str(file) in str(inputs.value)
