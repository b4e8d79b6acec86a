"""A concept from an instruction: its sets, its metrics, its filters and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.instruction import INSTRUCTION, PROMPTS, FakeBase, fake_base
from helpers.tiny_models import tiny_editable
from retouch.concepts.concept import Concept, Context
from retouch.concepts.registry import load_concept_file, ordinary_examples
from retouch.concepts.validate import validate
from retouch.core.errors import ConfigError, DataError, RunError
from retouch.core.types import SPLITS
from retouch.evaluation.scorers import check_metrics
from retouch.instruction.audit import InstructionAudit
from retouch.instruction.build import (
    LOSSES,
    NUM_RETAIN,
    OTHER_INSTRUCTIONS,
    SETTINGS,
    TEXT_GROUPS,
    WHOLE_RESPONSES,
    concept_from_instruction,
    save,
)
from retouch.models.generate import Response

__all__ = ["fake_base"]

RULE = "max_sentences:1,max_words:30"


def make(
    instruction: str = INSTRUCTION, prompts: object = PROMPTS, **options: object
) -> tuple[Concept, InstructionAudit]:
    return concept_from_instruction(
        tiny_editable(),
        instruction,
        prompts=prompts,
        on_event=lambda _: None,
        **options,  # type: ignore[arg-type]
    )


def test_the_concept_of_an_instruction(fake_base: FakeBase) -> None:
    concept, audit = make()
    assert concept.name == "answer-in-one-short-sentence"
    assert audit.rule == RULE
    assert concept.directions.keys() == {"raise"}
    spec = concept.directions["raise"]
    assert (spec.source, spec.target, spec.retain) == (("plain",), ("plain",), ("other", "text"))
    assert spec.context == Context(system=INSTRUCTION)
    assert spec.effect == "follows_max_sentences_1_max_words_30"
    effect, degenerate, elsewhere, *drift = concept.metrics
    assert (effect.metric, effect.scorer, effect.rule) == (spec.effect, "follows", RULE)
    assert degenerate.labels == effect.labels == ("plain",)
    assert elsewhere.labels == ("other", "text")
    assert [one.metric for one in drift] == ["kl_per_token", "kl_answers"]
    # The end of a response shows whether it is one sentence.
    assert concept.settings["raise"] == {"data": SETTINGS | WHOLE_RESPONSES, "loss": LOSSES}
    check_metrics(concept)
    assert not [one for one in validate(concept) if one.level == "error"]
    assert [len(concept.select(split, ["plain"])) for split in SPLITS] == [36, 12, 12]
    for one in concept.select("train", ["plain"]):
        assert one.response == f"Topic {one.prompt[-1].content[14:-1]} is a thing with a name."
    assert all(one.response is None for one in concept.select("test", ["plain"]))


def test_the_retain_set_has_other_instructions_and_given_texts(fake_base: FakeBase) -> None:
    concept, _ = make()
    ordinary = {one.prompt for some in ordinary_examples("tiny").values() for one in some}
    for split in SPLITS:
        other, text = (concept.select(split, [label]) for label in ("other", "text"))
        assert len(other) + len(text) == NUM_RETAIN[split]
        assert {one.prompt[0].content for one in other} <= set(OTHER_INSTRUCTIONS)
        assert {one.prompt[1:] for one in other} <= ordinary
        assert {one.group for one in text} <= TEXT_GROUPS
    assert len(OTHER_INSTRUCTIONS) >= 12


def test_an_instruction_is_not_among_the_others(
    fake_base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "Reply in Spanish."
    monkeypatch.setattr("helpers.instruction.INSTRUCTION", own)
    monkeypatch.setattr(
        "retouch.instruction.candidates.follows", lambda _, text: text.count(".") == 1
    )
    concept, _ = make(own)
    others = {one.prompt[0].content for one in concept.select("train", ["other"])}
    assert others == set(OTHER_INSTRUCTIONS) - {own}


def test_built_in_prompts_are_split_as_their_pack_and_none_is_retained(
    fake_base: FakeBase,
) -> None:
    for split, examples in ordinary_examples("tiny").items():
        assert len(examples) > 100, split
    concept, audit = make(prompts=None, num_prompts=60)
    source_examples = {one.example.prompt for one in audit.candidates}
    for split in SPLITS:
        own = {one.prompt for one in ordinary_examples("tiny")[split]}
        assert {one.example.prompt for one in audit.candidates if one.split == split} <= own
        for one in concept.select(split, ["other", "text"]):
            assert one.prompt not in source_examples
            assert one.prompt[1:] not in source_examples


def test_the_form_that_is_followed_is_used(fake_base: FakeBase) -> None:
    fake_base.form = "user"
    concept, audit = make()
    assert [one.form for one in audit.probes] == ["user", "system"]
    assert concept.directions["raise"].context == Context(around="{prompt}\n\n" + INSTRUCTION)


def test_responses_are_dropped_by_the_first_reason(fake_base: FakeBase) -> None:
    fake_base.faults = {
        0: Response("Topic 0 is", truncated=True),
        1: Response("no no no no no no no no no no no no"),
        2: Response("Topic 2 is one. It has two."),
        3: Response("Topic 13 is a thing with a name."),
    }
    _, audit = make()
    dropped = {one.example.prompt[-1].content: one.dropped for one in audit.candidates}
    for i, reason in enumerate(("cut", "degenerate", "not-followed", "off-topic", None)):
        assert dropped[f"What is topic {i}?"] == reason


def test_unchanged_responses_are_dropped(
    fake_base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = fake_base.generate
    topics = {f"What is topic {i}?" for i in range(12)}

    def generate_short(_: object, requests: list[object], **options: object) -> list[Response]:
        made = generate(_, requests, **options)
        return [
            Response(one.text.split(". ")[0].rstrip(".") + ".")
            if request[0][-1].content in topics  # type: ignore[index]
            else one
            for request, one in zip(requests, made, strict=True)
        ]

    monkeypatch.setattr("retouch.instruction.candidates.generate_base", generate_short)
    _, audit = make()
    unchanged = {
        one.example.prompt[-1].content for one in audit.candidates if one.dropped == "unchanged"
    }
    assert unchanged == topics


def test_likelihood_decides_where_no_rule_does(
    fake_base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.instruction.build.find_rule", lambda _: "")
    concept, audit = make()
    effect = concept.metrics[0]
    assert (effect.metric, effect.scorer) == ("follows_likelihood", "follows_likelihood")
    assert effect.context == Context(system=INSTRUCTION)
    assert "likelihood" in audit.rule_text
    plain, prompted = audit.rates()
    assert (plain.value, prompted.value) == (0.0, 1.0)


def test_a_cut_response_is_kept_where_its_beginning_decides(
    fake_base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.instruction.build.find_rule", lambda _: "")
    fake_base.faults = {i: Response(f"Topic {i} is a.", truncated=True) for i in range(60)}
    concept, audit = make()
    assert {one.dropped for one in audit.candidates} == {None}
    assert concept.settings["raise"]["data"] == SETTINGS
    # The edit generates them anew, without an end that the base did not give.
    assert {one.response for one in concept.select("train", ["plain"])} == {None}


def test_an_instruction_that_is_not_followed_is_an_error(fake_base: FakeBase) -> None:
    fake_base.form = "none"
    with pytest.raises(DataError, match="none of 24 responses follows") as raised:
        make()
    assert raised.value.code == "instruction-not-followed"
    assert "sentences: at most 1" in raised.value.message
    assert "Context" in raised.value.hint
    fake_base.form = "system"
    # The first prompts, which are tried first, are followed; most others are not.
    fake_base.faults = {i: Response("One. Two.") for i in range(60) if i % 6}
    with pytest.raises(DataError, match=r"16.7 %.* of 60 responses follow it") as raised:
        make()
    assert raised.value.code == "instruction-not-followed"


def test_an_instruction_that_changes_nothing_is_an_error(
    fake_base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.instruction.build.find_rule", lambda _: "max_words:100")
    with pytest.raises(DataError, match="changes little") as raised:
        make()
    assert raised.value.code == "instruction-not-followed"


def test_too_few_kept_responses_are_an_error(fake_base: FakeBase) -> None:
    fake_base.faults = {i: Response("Topic 99 is a thing.") for i in range(56)}
    with pytest.raises(DataError, match="off-topic") as raised:
        make()
    assert raised.value.code == "too-few-examples"


def test_wrong_arguments(fake_base: FakeBase, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instruction"):
        make("  ")
    with pytest.raises(DataError, match="too few"):
        make(prompts=PROMPTS[:6])
    with pytest.raises(DataError, match=r"prompts\[1\]"):
        make(prompts=["a", 3])
    with pytest.raises(DataError, match="does not exist"):
        make(prompts=tmp_path / "no.txt")


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_prompts_from_a_file(fake_base: FakeBase, tmp_path: Path, suffix: str) -> None:
    lines = {
        "txt": PROMPTS,
        "csv": ["prompt", *PROMPTS],
        "jsonl": [json.dumps({"prompt": one}) for one in PROMPTS],
    }[suffix]
    path = tmp_path / f"prompts.{suffix}"
    path.write_text("\n".join(lines) + "\n")
    assert make(prompts=path)[0].examples == make()[0].examples


def test_the_pack_and_its_audit_are_written(fake_base: FakeBase, tmp_path: Path) -> None:
    fake_base.faults = {i: Response("Topic 99 is a thing.") for i in range(0, 60, 4)}
    concept, audit = make()
    folder = tmp_path / "pack"
    save(concept, audit, folder)
    assert load_concept_file(folder).hash == concept.hash
    text = (folder / "audit.md").read_text()
    assert INSTRUCTION in text
    assert RULE in text
    kept, dropped = text.split("## Kept\n")[1].split("## Dropped: off-topic")
    assert kept.count("- without:") == dropped.count("- without:") == 10
    assert "Read by hand" in text
    values = json.loads((folder / "audit.json").read_text())
    assert values["counts"]["train"]["candidates"] == 36
    assert sum(values["counts"][split].get("off-topic", 0) for split in SPLITS) == 15
    assert len(values["candidates"]) == 60
    with pytest.raises(RunError, match="exists already"):
        save(concept, audit, folder)


def test_the_result_does_not_depend_on_chance(fake_base: FakeBase) -> None:
    assert make()[0].hash == make()[0].hash
    assert make(num_prompts=40)[0].hash != make(num_prompts=40, seed=1)[0].hash


def test_from_instruction_writes_a_pack(fake_base: FakeBase, tmp_path: Path) -> None:
    concept = Concept.from_instruction(
        tiny_editable(),
        INSTRUCTION,
        prompts=PROMPTS,
        name="short",
        out=tmp_path / "short",
        on_event=lambda _: None,
    )
    assert concept.name == "short"
    assert load_concept_file(tmp_path / "short").hash == concept.hash
