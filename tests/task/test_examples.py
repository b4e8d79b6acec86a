from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from helpers.groups_concept import groups_concept
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.concept import Concept, Example
from retouch.core.errors import DataError
from retouch.core.types import Split
from retouch.models.editable_model import EditableModel
from retouch.task.examples import EditExamples, build_examples


def build(
    editable: EditableModel,
    concept: Concept,
    overrides: Mapping[str, Any] | None = None,
    split: Split = "train",
) -> EditExamples:
    data = tiny_config(overrides).data
    return build_examples(editable, concept, "raise", split, data, 0)


def add_examples(concept: Concept, more: list[Example]) -> Concept:
    train = (*concept.examples["train"], *more)
    return replace(concept, examples={**concept.examples, "train": train})


def test_prefill_examples_end_in_the_target_response() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    plain = build(editable, concept)
    prefilled = build(editable, concept, {"data.prefill_tokens": 1, "data.prefills_per_example": 2})
    count = len(plain.source)
    sets = (prefilled.source, prefilled.counterparts, prefilled.chosen, prefilled.rejected)
    assert all(len(one) == 3 * count for one in sets)
    assert list(prefilled.source[:count]) == list(plain.source)
    assert list(prefilled.chosen) == list(prefilled.source)
    triples = zip(
        prefilled.source[count:],
        prefilled.counterparts[count:],
        prefilled.rejected[count:],
        strict=True,
    )
    for number, (chat, counterpart, rejected) in enumerate(triples):
        source, own = plain.source[number // 2], plain.rejected[number // 2]
        prompter = counterpart if number % 2 else source
        prompt = prompter.ids[: prompter.start]
        prefill = chat.ids[len(prompt) : chat.start]
        assert chat.ids[: len(prompt)] == prompt
        assert len(prefill) == 1
        assert prefill == own.ids[own.start :][:1]
        assert chat.ids[chat.start :] == source.ids[source.start :]
        assert rejected.ids == (*prompt, *own.ids[own.start :])
        assert rejected.start == chat.start


def test_prefills_of_retain_examples_are_forced_on_source_examples() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    retain = [replace(one, prefill="w50 w51") for one in concept.examples["train"][2:9:3]]
    concept = add_examples(concept, retain)
    overrides = {"data.prefills_per_example": 4, "data.num_retain": 15}
    plain = build(editable, concept, overrides)
    prefilled = build(editable, concept, {**overrides, "data.prefill_tokens": 2})
    opening = editable.tokenizer.convert_tokens_to_ids(["w50", "w51"])
    for number, chat in enumerate(prefilled.source[len(plain.source) :]):
        counterpart, source = plain.counterparts[number // 4], plain.source[number // 4]
        prompt = counterpart if number % 2 else source
        prefill = list(chat.ids[prompt.start : chat.start])
        assert (prefill == opening[: len(prefill)]) == (number // 2 % 2 == 1)


def test_source_filter_selects_training_examples() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    more = [replace(one, label="more", group="g") for one in concept.examples["train"][:9:3]]
    concept = add_examples(concept, more)
    assert len(build(editable, concept, {"data.source_filter": "more:g"}).source) == 3
    validation = build(editable, concept, {"data.source_filter": "more"}, "validation")
    assert len(validation.source) == 8
    with pytest.raises(DataError, match="more:h") as error:
        build(editable, concept, {"data.source_filter": "more:h"})
    assert error.value.code == "examples-missing"


def test_a_set_without_examples_is_named() -> None:
    concept = tiny_concept()
    examples = {
        split: tuple(one for one in every if one.label != "positive")
        for split, every in concept.examples.items()
    }
    with pytest.raises(DataError, match="positive, the target") as error:
        build(tiny_editable(), replace(concept, examples=examples))
    assert error.value.code == "examples-missing"


def test_a_missing_direction_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        build(tiny_editable(), replace(tiny_concept(), directions={}))
    assert error.value.code == "direction-missing"


def test_to_increase_a_gap_the_choice_of_the_group_is_chosen() -> None:
    editable = tiny_editable()
    examples = build(editable, groups_concept("higher"), {"data.num_examples": 16})
    first, second = (editable.tokenizer(word)["input_ids"][0] for word in ("w7", "w8"))
    pairs = zip(examples.groups, examples.chosen, examples.rejected, strict=True)
    for group, chosen, rejected in pairs:
        assert chosen.ids[chosen.start] == (first if group == "a" else second)
        assert rejected.ids[rejected.start] == (second if group == "a" else first)


def test_to_reduce_a_gap_each_prompt_has_both_choices() -> None:
    examples = build(tiny_editable(), groups_concept("lower"), {"data.num_examples": 16})
    assert len(examples.chosen) == 2 * len(examples.source)
