"""Concepts are found by name, entry point or path."""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from helpers.packs import COLOUR, write_pack, write_packs
from retouch.concepts import registry
from retouch.concepts.registry import builtin_names, concept_names, load_concept
from retouch.core import plugins as plugins_module
from retouch.core.errors import DataError
from retouch.core.types import SPLITS


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built-in packs `colour` and `capability`, in place of the real ones."""
    folder = write_packs(tmp_path / "packs")
    monkeypatch.setattr(registry, "packs", lambda: folder)
    return folder


def custom_file(folder: Path) -> Path:
    path = folder / "mine.csv"
    rows = [f"{label} {i},{label}" for label in ("positive", "negative") for i in range(10)]
    path.write_text("\n".join(["prompt,label", *rows]))
    return path


def test_the_built_in_concepts() -> None:
    assert builtin_names() == [
        "capability",
        "finetuning-resistance",
        "gender-bias",
        "one-attack",
        "prefill",
        "safety",
        "tone",
        "truthfulness",
    ]


def test_a_used_pack_adds_its_examples_and_metrics_once(packs: Path) -> None:
    concept = load_concept("colour")
    for split in SPLITS:
        assert [example.label for example in concept.examples[split]] == ["red", "blue", "task"]
    # The concept's own `drift.kl` takes precedence over that of the pack that it uses.
    assert [(m.metric, m.labels) for m in concept.metrics] == [("red", ("red",)), ("kl", ("red",))]
    assert concept.settings == {"raise": {"train": {"rounds": 3, "learning_rate": 0.001}}}


def test_the_name_the_folder_and_its_yaml_file_give_the_same_concept(packs: Path) -> None:
    by_name = load_concept("colour")
    for path in (packs / "colour", packs / "colour" / "concept.yaml"):
        assert load_concept(str(path)).hash == by_name.hash


def test_a_name_takes_precedence_over_a_path(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pack(tmp_path / "colour", {**COLOUR, "title": "Other"}, ["red", "blue"])
    monkeypatch.chdir(tmp_path)
    assert load_concept("colour").title == "Colour"
    assert load_concept("./colour").title == "Other"


def test_a_custom_file_gets_the_capability_examples_and_metrics(
    packs: Path, tmp_path: Path
) -> None:
    concept = load_concept(str(custom_file(tmp_path)))
    assert [example.label for example in concept.examples["test"]].count("task") == 1
    assert [metric.scorer for metric in concept.metrics][-1] == "kl_tokens"
    assert concept.hash != load_concept("capability").hash


def test_an_unknown_name_is_reported_with_the_closest_one(packs: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_concept("color")
    assert raised.value.code == "concept-unknown"
    for part in ("`color`", "Did you mean `colour`?", "`capability`", ".csv"):
        assert part in str(raised.value)


@pytest.mark.parametrize("path", ["gone.csv", "gone.yaml"])
def test_a_missing_path_is_reported(packs: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=path) as raised:
        load_concept(str(tmp_path / path))
    assert raised.value.code == "file-missing"


# Entry points of other packages.


@pytest.fixture
def plugins(packs: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The entry points of the group, by name: add to it to install one."""
    values: dict[str, str] = {}

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in values.items()]

    monkeypatch.setattr(plugins_module, "entry_points", entry_points)
    return values


def module(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> str:
    """Install a module with these attributes; returns its name."""
    name = "some_package_with_concepts"
    monkeypatch.setitem(sys.modules, name, type(sys)(name))
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)
    return name


@pytest.mark.parametrize("form", ["path", "text", "function", "zip"])
def test_a_package_can_provide_a_concept(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    folder = write_pack(tmp_path / "hue", {**COLOUR, "name": "hue"}, ["red", "blue"])
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"hue/{file.name}")
    value = {
        "path": folder,
        "text": str(folder),
        "function": lambda: folder,
        "zip": zipfile.Path(archive, "hue/"),
    }[form]
    plugins["hue"] = f"{module(monkeypatch, HUE=value)}:HUE"
    assert concept_names() == ["capability", "colour", "hue"]
    assert builtin_names() == ["capability", "colour"]
    concept = load_concept("hue")
    assert concept.name == "hue"
    assert [example.label for example in concept.examples["train"]] == ["red", "blue", "task"]
    assert concept.hash == load_concept(str(folder)).hash


def test_a_concept_may_use_one_of_another_package(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hue = write_pack(tmp_path / "hue", {**COLOUR, "name": "hue"}, ["red", "blue"])
    plugins["hue"] = f"{module(monkeypatch, HUE=hue)}:HUE"
    pack = {"name": "mine", "title": "", "description": "", "uses": ["hue"]}
    mine = write_pack(tmp_path / "mine", pack, ["green"])
    labels = [example.label for example in load_concept(str(mine)).examples["test"]]
    assert labels == ["green", "red", "blue", "task"]


def test_names_are_listed_without_importing_the_packages(plugins: dict[str, str]) -> None:
    plugins["hue"] = "no_such_module:HUE"
    assert concept_names() == ["capability", "colour", "hue"]
    assert load_concept("colour").title == "Colour"


def test_a_built_in_concept_cannot_be_overridden(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_pack(tmp_path / "other", {**COLOUR, "title": "Other"}, ["red", "blue"])
    plugins["colour"] = f"{module(monkeypatch, OTHER=other)}:OTHER"
    assert concept_names() == ["capability", "colour"]
    assert load_concept("colour").title == "Colour"


def fail() -> Path:
    raise KeyError("broken")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "no_such_module"),
        (fail, "KeyError"),
        (42, "42"),
        ("/no/such/folder", "/no/such/folder"),
    ],
)
def test_a_broken_entry_point_is_an_error_that_names_it(
    plugins: dict[str, str], monkeypatch: pytest.MonkeyPatch, value: Any, part: str
) -> None:
    reference = "no_such_module:HUE"
    if value is not None:
        reference = f"{module(monkeypatch, HUE=value)}:HUE"
    plugins["hue"] = reference
    with pytest.raises(DataError) as raised:
        load_concept("hue")
    assert raised.value.code == "concept-not-loaded"
    for each in ("`hue`", reference, part):
        assert each in str(raised.value)
    assert raised.value.hint


def test_a_package_cannot_provide_a_concept_under_another_name(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pack(tmp_path / "hue", {**COLOUR, "name": "other"}, ["red", "blue"])
    plugins["hue"] = f"{module(monkeypatch, HUE=folder)}:HUE"
    with pytest.raises(DataError, match="`other`") as raised:
        load_concept("hue")
    assert raised.value.code == "concept-not-loaded"


def test_the_files_of_a_package_are_validated(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pack(tmp_path / "hue", {**COLOUR, "name": "hue"}, ["red", "blue"])
    (folder / "test.jsonl").write_text('{"prompt": "", "label": "red"}')
    plugins["hue"] = f"{module(monkeypatch, HUE=folder)}:HUE"
    with pytest.raises(DataError, match=r"test\.jsonl, line 1") as raised:
        load_concept("hue")
    assert raised.value.code == "prompt-empty"
