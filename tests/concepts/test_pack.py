"""Mistakes in a pack are reported with file and key; a saved concept reads back equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.packs import COLOUR, write_pack, write_packs
from retouch.concepts import registry
from retouch.concepts.concept import (
    Concept,
    Context,
    Demonstration,
    DirectionSpec,
    Example,
    MetricSpec,
)
from retouch.concepts.hashing import content_hash
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import builtin_names, load_concept, load_concept_file
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Message


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built-in packs `colour` and `ordinary`, in place of the real ones."""
    folder = write_packs(tmp_path / "packs")
    monkeypatch.setattr(registry, "packs", lambda: folder)
    return folder


METRIC = COLOUR["metrics"][0]
RAISE = COLOUR["directions"]["raise"]

# Each is (change of the pack, error code, parts of the message: key, value, suggestion).
MISTAKES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "unknown key": ({"titel": "x"}, "key-unknown", ["key `titel`", "Did you mean `title`?"]),
    "key without a value": ({"title": None}, "value-invalid", ["key `title`", "None"]),
    "empty name": ({"name": ""}, "value-invalid", ["key `name`", "''"]),
    "unknown direction": (
        {"directions": {"rise": {}}},
        "value-invalid",
        ["key `directions.rise`", "'raise' or 'lower'"],
    ),
    "unknown key of a direction": (
        {"directions": {"raise": {**RAISE, "retains": []}}},
        "key-unknown",
        ["key `directions.raise.retains`", "Did you mean `retain`?"],
    ),
    "unknown label of a direction": (
        {"directions": {"raise": {**RAISE, "target": ["blu"]}}},
        "label-unknown",
        ["key `directions.raise.target`", "`blu`", "Did you mean `blue`?"],
    ),
    "unknown effect of a direction": (
        {"directions": {"raise": {**RAISE, "effect": "rad"}}},
        "metric-unknown",
        ["key `directions.raise.effect`", "`rad`", "Did you mean `red`?"],
    ),
    "neither a target nor a context": (
        {"directions": {"raise": {**RAISE, "target": []}}},
        "target-missing",
        ["key `directions.raise.target`"],
    ),
    "empty context": (
        {"directions": {"raise": {**RAISE, "context": {}}}},
        "context-invalid",
        ["key `directions.raise.context`"],
    ),
    "user turn without a prompt": (
        {"directions": {"raise": {**RAISE, "context": {"around": "Be brief."}}}},
        "context-invalid",
        ["key `directions.raise.context.around`", "Be brief."],
    ),
    "unknown key of a context": (
        {"directions": {"raise": {**RAISE, "context": {"sistem": "x"}}}},
        "key-unknown",
        ["key `directions.raise.context.sistem`", "Did you mean `system`?"],
    ),
    "unknown key of a demonstration": (
        {
            "directions": {
                "raise": {
                    **RAISE,
                    "context": {"demonstrations": [{"prompt": "x", "response": "y", "reply": ""}]},
                }
            }
        },
        "key-unknown",
        ["key `directions.raise.context.demonstrations.0.reply`", "`response`"],
    ),
    "unknown label of a metric": (
        {"metrics": [{**METRIC, "labels": ["rad"]}]},
        "label-unknown",
        ["key `metrics.red`", "`rad`", "Did you mean `red`?"],
    ),
    "unknown key of a metric": (
        {"metrics": [{**METRIC, "label": "x"}]},
        "key-unknown",
        ["key `metrics.0.label`", "Did you mean `labels`?"],
    ),
    "repeated metric": (
        {"metrics": [METRIC, METRIC]},
        "metric-duplicate",
        ["key `metrics`", "`colour.red`"],
    ),
    "unknown setting": (
        {"settings": {"raise": {"lora": {"rnak": 3}, "train": {"round": 3}}}},
        "settings-invalid",
        ["key `settings.raise`", "`lora.rnak`", "Did you mean `train.rounds`?"],
    ),
    "renamed setting": (
        {"settings": {"raise": {"rank": 3}}},
        "settings-invalid",
        ["key `settings.raise`", "`rank`", "`lora.r`"],
    ),
    "invalid setting": (
        {"settings": {"raise": {"lora": {"r": 0}}}},
        "settings-invalid",
        ["key `settings.raise`", "`lora.r`", "greater than or equal to 1"],
    ),
    "unknown pack": (
        {"uses": ["ordinry"]},
        "concept-unknown",
        ["key `uses`", "`ordinry`", "Did you mean `ordinary`?"],
    ),
    "a path in place of a pack": ({"uses": ["../colour"]}, "concept-unknown", ["`../colour`"]),
    "a cycle": ({"uses": ["colour"]}, "uses-cycle", ["key `uses`", "colour -> colour"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_file_key_and_a_hint(packs: Path, name: str) -> None:
    change, code, parts = MISTAKES[name]
    file = packs / "colour" / "concept.yaml"
    file.write_text(yaml.safe_dump({**COLOUR, **change}))
    with pytest.raises(DataError) as raised:
        load_concept("colour")
    assert raised.value.code == code
    for part in [str(file), *parts]:
        assert part in str(raised.value)
    assert raised.value.hint


def test_a_missing_key_is_reported(packs: Path) -> None:
    file = packs / "colour" / "concept.yaml"
    file.write_text("name: colour\ntitle: Colour\n")
    with pytest.raises(DataError, match="key `description`") as raised:
        load_concept("colour")
    assert raised.value.code == "key-missing"


@pytest.mark.parametrize(
    ("text", "part"),
    [("name: [a\ntitle: b", "line 2"), ("- a", "mapping"), ("!!python/name:os.system", "python")],
)
def test_a_file_that_is_not_a_plain_yaml_mapping_is_refused(
    packs: Path, text: str, part: str
) -> None:
    file = packs / "colour" / "concept.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=part) as raised:
        load_concept("colour")
    assert raised.value.code == "yaml-syntax"
    assert str(file) in str(raised.value)


def test_a_file_that_is_not_utf_8_is_refused(packs: Path) -> None:
    file = packs / "colour" / "concept.yaml"
    file.write_bytes(b"name: caf\xe9")
    with pytest.raises(DataError) as raised:
        load_concept("colour")
    assert raised.value.code == "file-unreadable"


def test_a_pack_without_a_split_is_refused(packs: Path) -> None:
    (packs / "colour" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"colour.validation\.jsonl") as raised:
        load_concept("colour")
    assert raised.value.code == "file-missing"


def test_an_empty_training_split_is_refused(packs: Path) -> None:
    (packs / "colour" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"colour.train\.jsonl") as raised:
        load_concept("colour")
    assert raised.value.code == "file-empty"


def test_the_hash_depends_on_the_content_alone(packs: Path, tmp_path: Path) -> None:
    pack = {**COLOUR, "name": "mine"}
    one = load_concept(str(write_pack(tmp_path / "one", pack, ["red", "blue"])))
    two = load_concept(str(write_pack(tmp_path / "two", pack, ["red", "blue"])))
    assert one.hash == two.hash == content_hash(one)
    assert len(one.hash) == 64
    (tmp_path / "two" / "test.jsonl").write_text('{"prompt": "else", "label": "red"}')
    assert load_concept(str(tmp_path / "two")).hash != one.hash


# Saved concepts.


def chats() -> Concept:
    """A concept with several turns, prefills, responses and settings, made by its constructor."""
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hö? \u2028"),
    )

    def examples(split: str) -> tuple[Example, ...]:
        return tuple(
            Example(
                (*turns, Message("user", f"{split} {label}\n\x85 'q' \"q\" \U0001f600")),
                label,
                response=" with spaces " if label == "blue" else None,
                pair=split,
                prefill="Sure, ",
                accept=("a|b", " c"),
                group="g",
                entity=f"e{split}",
            )
            for label in ("red", "blue", "rest")
        )

    return Concept(
        name="chats",
        title="Title: with a colon # and a mark",
        description="Two\nlines, 'quoted'.",
        examples={split: examples(split) for split in SPLITS},
        directions={"lower": DirectionSpec(("red",), ("blue",), ("rest",), "red", "lower")},
        weakens="lower",
        settings={"lower": {"lora": {"layers_to_transform": (1, 2)}, "loss": {"sft_weight": 1}}},
        metrics=(
            MetricSpec("s", "red", ("red",), "group_gap", choices=("he", "she"), groups=("g", "h")),
        ),
    )


def pairs() -> Concept:
    source = [{"prompt": f"source {i}", "prefill": "Sure", "accept": ["x"]} for i in range(12)]
    return Concept.from_pairs(source, [f"target {i}" for i in range(12)], name="a: b # c")


def without_test() -> Concept:
    def entries(name: str) -> list[dict[str, str]]:
        return [{"prompt": f"{name} {s}", "split": s} for s in ("train", "validation")]

    concept = Concept.from_pairs(entries("source"), entries("target"), entries("retain"))
    own = {split: tuple(concept.select(split, ["negative", "positive"])) for split in SPLITS}
    metrics = tuple(metric for metric in concept.metrics if metric.suite == "custom")
    directions = {"raise": DirectionSpec(("negative",), ("positive",), ())}
    return dataclasses.replace(
        concept, examples=own, metrics=metrics, directions=directions, hash=""
    )


def elicited() -> Concept:
    context = Context("Be brief.\n", (Demonstration("a", "b: c"),), "Sure,", "{prompt} #")
    spec = DirectionSpec(("red",), (), ("rest",), context=context)
    return dataclasses.replace(chats(), directions={"raise": spec}, hash="")


def test_the_context_is_part_of_the_hash_only_where_there_is_one() -> None:
    spec = DirectionSpec(("red",), ("blue",), ("rest",), "red", "lower")
    assert spec.context is None
    assert chats().hash == "598b311bd75acaed85e8f40624406eed1c68e023354c7d54fbddf784a5823361"
    changed = dataclasses.replace(spec, context=Context("x"))
    assert dataclasses.replace(chats(), directions={"lower": changed}, hash="").hash != chats().hash


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: load_concept(name) for name in builtin_names()),
        pairs,
        chats,
        elicited,
        without_test,
    ],
)
def test_a_saved_concept_reads_back_equal(tmp_path: Path, make: Callable[[], Concept]) -> None:
    concept = make()
    save_pack(concept, tmp_path / "saved")
    again = load_concept_file(tmp_path / "saved")
    assert again.examples == concept.examples
    assert again.metrics == concept.metrics
    assert again.directions == concept.directions
    assert again.hash == concept.hash


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_and_description_read_back_equal(tmp_path: Path, text: str) -> None:
    concept = dataclasses.replace(chats(), name=text, title=text, description=text, hash="")
    save_pack(concept, tmp_path / "saved")
    assert load_concept_file(tmp_path / "saved").hash == concept.hash


def test_a_context_cannot_be_around_running_text() -> None:
    with pytest.raises(DataError, match="running text: 'The nurse'"):
        Context("Be brief.").apply(Example((), "source", prefill="The nurse"))
