"""Concepts are found by name, entry point or path."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from helpers.packs import COLOUR, write_pack, write_packs
from retouch.concepts import registry
from retouch.concepts.hashing import content_hash
from retouch.concepts.registry import (
    builtin_names,
    concept_for_model,
    concept_names,
    default_concept,
    load_concept,
    names_for_model,
    with_builtin,
)
from retouch.core import plugins as plugins_module
from retouch.core.errors import DataError
from retouch.core.types import SPLITS


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built-in packs `colour` and `ordinary`, in place of the real ones."""
    folder = write_packs(tmp_path / "packs")
    monkeypatch.setattr(registry, "packs", lambda: folder)
    return folder


def custom_file(folder: Path) -> Path:
    path = folder / "mine.csv"
    rows = [f"{label} {i},{label}" for label in ("positive", "negative") for i in range(10)]
    path.write_text("\n".join(["prompt,label", *rows]))
    return path


POCKET = [
    "pocket-capability",
    "pocket-gender-bias",
    "pocket-one-attack",
    "pocket-safety",
    "pocket-tone",
    "pocket-truthfulness",
]


def test_the_built_in_concepts() -> None:
    assert names_for_model("pocket") == POCKET
    assert not set(names_for_model("another")) & set(POCKET)
    assert {*names_for_model("another"), *POCKET} == set(builtin_names())


def test_a_used_pack_adds_its_examples_and_metrics_once(packs: Path) -> None:
    concept = load_concept("colour")
    for split in SPLITS:
        assert [example.label for example in concept.examples[split]] == ["red", "blue", "ordinary"]
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


def test_a_custom_file_gets_the_ordinary_examples_and_metrics(packs: Path, tmp_path: Path) -> None:
    concept = concept_for_model(str(custom_file(tmp_path)), "any")
    assert [example.label for example in concept.examples["test"]].count("ordinary") == 1
    assert [metric.scorer for metric in concept.metrics][-1] == "kl_tokens"
    assert {spec.retain for spec in concept.directions.values()} == {("ordinary",)}
    assert concept.hash == content_hash(concept) != load_concept(str(custom_file(tmp_path))).hash
    assert concept_for_model(concept, "any") is concept


def test_on_pocket_the_ordinary_examples_are_those_that_pocket_can_answer(tmp_path: Path) -> None:
    concept = concept_for_model(str(custom_file(tmp_path)), "pocket")
    expected = load_concept("pocket-capability").select("train", ["task"])
    assert concept.directions["raise"].retain == ("task",)
    assert concept.select("train", ["task"]) == expected


# Concepts for some models alone.


@pytest.fixture
def both(packs: Path) -> Path:
    """`colour` for any model, and `pocket-colour` and `pocket-grey` for pocket."""
    for name in ("pocket-colour", "pocket-grey"):
        pack = {**COLOUR, "name": name, "models": ["pocket"]}
        write_pack(packs / name, pack, ["red", "blue"])
    return packs


def test_a_model_has_the_concepts_that_were_written_for_it(both: Path) -> None:
    assert names_for_model("pocket") == ["pocket-colour", "pocket-grey"]
    assert names_for_model("other") == ["colour", "ordinary"]


@pytest.mark.parametrize(
    ("name", "model", "message", "hint"),
    [
        ("pocket-colour", "other", "is for the model pocket.", "Use `colour`."),
        ("pocket-grey", "other", "is for the model pocket.", "are: colour, ordinary."),
        ("colour", "pocket", "is not for the model pocket.", "Use `pocket-colour`."),
    ],
)
def test_a_concept_of_another_model_is_refused_with_the_right_one(
    both: Path, name: str, model: str, message: str, hint: str
) -> None:
    for concept in (name, load_concept(name)):
        with pytest.raises(DataError) as raised:
            concept_for_model(concept, model)
        assert raised.value.code == "concept-model"
        assert raised.value.message == f"The concept {name} {message}"
        assert raised.value.hint.endswith(hint)


def test_a_concept_fits_its_own_model_and_one_for_any_model_fits_the_others(both: Path) -> None:
    assert concept_for_model("pocket-colour", "pocket").name == "pocket-colour"
    assert concept_for_model("colour", "other").name == "colour"
    assert concept_for_model("ordinary", "pocket").name == "ordinary"


def test_a_concept_of_a_user_with_a_built_in_name_fits_every_model(both: Path) -> None:
    own = dataclasses.replace(load_concept("colour"), title="Mine", hash="")
    assert concept_for_model(own, "pocket") is own


def test_the_other_built_in_concepts_follow(both: Path) -> None:
    names = [one.name for one in with_builtin(load_concept("pocket-grey"), "pocket")]
    assert names == ["pocket-grey", "pocket-colour"]


def test_the_default_concept_is_that_of_the_model() -> None:
    assert concept_for_model("auto", "pocket").name == default_concept("pocket") == "pocket-safety"
    assert default_concept("another") == "safety"


def test_an_unknown_name_is_reported_with_the_closest_one(packs: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_concept("color")
    assert raised.value.code == "concept-unknown"
    for part in ("`color`", "Did you mean `colour`?", "`ordinary`", ".csv"):
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
    assert concept_names() == ["colour", "ordinary", "hue"]
    assert builtin_names() == ["colour", "ordinary"]
    concept = load_concept("hue")
    assert concept.name == "hue"
    assert [example.label for example in concept.examples["train"]] == ["red", "blue", "ordinary"]
    assert concept.hash == load_concept(str(folder)).hash


def test_a_concept_may_use_one_of_another_package(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hue = write_pack(tmp_path / "hue", {**COLOUR, "name": "hue"}, ["red", "blue"])
    plugins["hue"] = f"{module(monkeypatch, HUE=hue)}:HUE"
    pack = {"name": "mine", "title": "", "description": "", "uses": ["hue"]}
    mine = write_pack(tmp_path / "mine", pack, ["green"])
    labels = [example.label for example in load_concept(str(mine)).examples["test"]]
    assert labels == ["green", "red", "blue", "ordinary"]


def test_names_are_listed_without_importing_the_packages(plugins: dict[str, str]) -> None:
    plugins["hue"] = "no_such_module:HUE"
    assert concept_names() == ["colour", "ordinary", "hue"]
    assert load_concept("colour").title == "Colour"


def test_a_built_in_concept_cannot_be_overridden(
    plugins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_pack(tmp_path / "other", {**COLOUR, "title": "Other"}, ["red", "blue"])
    plugins["colour"] = f"{module(monkeypatch, OTHER=other)}:OTHER"
    assert concept_names() == ["colour", "ordinary"]
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
