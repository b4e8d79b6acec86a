from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from helpers.groups_concept import groups_concept
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.concepts.concept import (
    Concept,
    Context,
    Demonstration,
    DirectionSpec,
    Example,
)
from retouch.core.errors import DataError
from retouch.core.types import Message, Split
from retouch.models.editable_model import EditableModel
from retouch.task.base_responses import generate_base
from retouch.task.examples import EditExamples, build_examples
from retouch.task.prefill import prefill_counts


def build(
    editable: EditableModel,
    concept: Concept,
    overrides: Mapping[str, Any] | None = None,
    split: Split = "train",
) -> EditExamples:
    data = tiny_config(overrides).data
    return build_examples(editable, concept, "raise", split, data, 0)


def response_text(editable: EditableModel, chat: TokenizedChat) -> str:
    """The response of a chat, which has no end token if it was cut."""
    return str(editable.tokenizer.decode(chat.ids[chat.start :], skip_special_tokens=True))


def add_examples(concept: Concept, more: list[Example]) -> Concept:
    train = (*concept.examples["train"], *more)
    return replace(concept, examples={**concept.examples, "train": train})


def test_prefill_examples_end_in_the_target_response() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    plain = build(editable, concept)
    prefilled = build(editable, concept, {"data.prefill_tokens": 6, "data.prefills_per_example": 2})
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
    lengths = set()
    for number, (chat, counterpart, rejected) in enumerate(triples):
        source = plain.source[number // 2]
        assert counterpart == plain.counterparts[number // 2]
        # Of every four, two have the source's prompt and two that of its counterpart.
        prompter = counterpart if number // 2 % 2 else source
        prompt = prompter.ids[: prompter.start]
        assert chat.ids[: len(prompt)] == prompt
        assert chat.ids[chat.start :] == source.ids[source.start :]
        assert rejected.ids[: chat.start] == chat.ids[: chat.start]
        assert len(rejected.ids) > rejected.start == chat.start
        lengths.add(chat.start - len(prompt))
    assert min(lengths) == 1
    assert 3 < max(lengths) <= 6


def test_as_many_retain_examples_have_a_prefill() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    overrides = {"data.prefill_tokens": 6, "data.prefills_per_example": 0.5}
    plain, prefilled = build(editable, concept), build(editable, concept, overrides)
    more = len(prefilled.source) - len(plain.source)
    assert more == len(plain.source) // 2
    assert list(prefilled.retain[: len(plain.retain)]) == list(plain.retain)
    added = prefilled.retain[len(plain.retain) :]
    kept = [chat.ids[: chat.start] for chat in plain.retain]
    assert len(added) == min(more, sum(prefilled.retain_nontarget[: len(plain.retain)]))
    assert all(any(chat.ids[: len(ids)] == ids for ids in kept) for chat in added)
    assert all(chat.start > min(map(len, kept)) for chat in added)


def test_prefills_are_the_same_for_a_seed_and_sampled_for_another() -> None:
    editable, concept = tiny_editable(), tiny_concept()
    data = tiny_config({"data.prefill_tokens": 6, "data.prefills_per_example": 1}).data
    first, again, other = (
        build_examples(editable, concept, "raise", "train", data, seed) for seed in (0, 0, 1)
    )
    assert first.source == again.source
    assert first.retain == again.retain
    beginnings = [{chat.ids[: chat.start] for chat in one.source} for one in (first, other)]
    assert beginnings[0] != beginnings[1]


def test_prefills_for_a_share_of_the_examples_are_spread_evenly() -> None:
    assert prefill_counts(8, 0.25) == [0, 0, 0, 1, 0, 0, 0, 1]
    assert prefill_counts(3, 2) == [2, 2, 2]
    assert sum(prefill_counts(10, 1.5)) == 15
    editable, concept = tiny_editable(), tiny_concept()
    plain = build(editable, concept)
    half = build(editable, concept, {"data.prefill_tokens": 1, "data.prefills_per_example": 0.5})
    count = len(plain.source)
    assert len(half.source) == len(half.rejected) == count + count // 2


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


def test_the_choices_of_a_gap_follow_the_prefill() -> None:
    editable, concept = tiny_editable(), groups_concept("lower")
    train = tuple(replace(one, prefill="w30 w31") for one in concept.examples["train"])
    concept = replace(concept, examples={**concept.examples, "train": train}, hash="")
    examples = build(editable, concept, {"data.num_examples": 16})
    prefill = editable.tokenizer("w30 w31", add_special_tokens=False)["input_ids"]
    choices = [editable.tokenizer(word)["input_ids"][0] for word in ("w7", "w8")]
    for chat in (*examples.chosen, *examples.rejected):
        assert list(chat.ids[chat.start - 2 : chat.start]) == prefill
        assert chat.ids[chat.start] in choices


# Targets under a context.

CONTEXT = Context(system="w80", demonstrations=(Demonstration("w81", "w82"),))


def plain_concept() -> Concept:
    """The tiny concept, without responses of source and target."""
    concept = give_responses(tiny_concept(), "negative", None)
    return give_responses(concept, "positive", None)


def with_context(concept: Concept, context: Context | None, *target: str) -> Concept:
    spec = replace(concept.directions["raise"], target=target, context=context)
    return replace(concept, directions={"raise": spec}, hash="")


def give_responses(concept: Concept, label: str, response: str | None) -> Concept:
    train = tuple(
        replace(one, response=response) if one.label == label else one
        for one in concept.examples["train"]
    )
    return replace(concept, examples={**concept.examples, "train": train})


def decode(editable: EditableModel, ids: tuple[int, ...]) -> str:
    return str(editable.tokenizer.decode(ids)).replace(" ", "")


def check_elicited(editable: EditableModel, examples: EditExamples) -> None:
    """Source and counterpart end in one response; only the counterpart has the context."""
    assert len(examples.source) == len(examples.counterparts) > 0
    for chat, other in zip(examples.source, examples.counterparts, strict=True):
        assert chat.ids[chat.start :] == other.ids[other.start :]
        demonstrated = "<|system|>w80<|end|><|user|>w81<|end|><|assistant|>w82<|end|>"
        assert demonstrated in decode(editable, other.ids)
        assert demonstrated not in decode(editable, chat.ids)


@pytest.mark.parametrize("target", [(), ("negative",)])
def test_under_a_context_an_example_is_its_own_counterpart(target: tuple[str, ...]) -> None:
    editable = tiny_editable()
    concept = with_context(plain_concept(), CONTEXT, *target)
    examples = build(editable, concept, {"data.max_new_tokens": 4, "data.max_base_tokens": 4})
    check_elicited(editable, examples)
    for one, chat, base in zip(
        examples.source_examples, examples.source, examples.rejected, strict=True
    ):
        prompt = CONTEXT.apply(one).prompt
        (response,) = generate_base(editable, [(prompt, "")], max_new_tokens=4)
        assert response_text(editable, chat) == response.text
        (plain,) = generate_base(editable, [(one.prompt, "")], max_new_tokens=4)
        assert response_text(editable, base) == plain.text
    assert list(examples.chosen) == list(examples.source)
    demonstrated = [prompt for prompt, _ in examples.demonstrations]
    assert demonstrated == [one.prompt for one in examples.source_examples]


def test_under_a_context_the_counterpart_is_the_pair_where_there_is_one() -> None:
    editable = tiny_editable()
    concept = with_context(plain_concept(), CONTEXT, "positive")
    examples = build(editable, concept)
    check_elicited(editable, examples)
    plain = build(editable, with_context(plain_concept(), None, "positive"))
    for chat, other in zip(plain.counterparts, examples.counterparts, strict=True):
        turn = decode(editable, chat.ids[: chat.start]).removeprefix("<|begin|>")
        assert decode(editable, other.ids[: other.start]).endswith(turn)


@pytest.mark.parametrize(
    ("label", "target", "context"),
    [
        ("positive", "positive", CONTEXT),  # the target's own response
        ("negative", "positive", CONTEXT),  # else the source's
        ("negative", "negative", CONTEXT),
        ("positive", "positive", None),
    ],
)
def test_a_given_response_is_the_target_response(
    label: str, target: str, context: Context | None
) -> None:
    editable = tiny_editable()
    concept = give_responses(plain_concept(), label, "w90 w91")
    examples = build(editable, with_context(concept, context, target))
    for chat, base in zip(examples.chosen, examples.rejected, strict=True):
        assert response_text(editable, chat) == "w90 w91"
        assert response_text(editable, base) != "w90 w91"


def test_a_target_with_the_prompt_of_its_source_and_a_response_is_its_counterpart() -> None:
    editable = tiny_editable()
    concept = plain_concept()
    refused = [
        replace(one, label="refused", response="w90 w91")
        for one in concept.examples["train"]
        if one.label == "negative"
    ]
    concept = add_examples(concept, refused)
    examples = build(editable, with_context(concept, None, "refused"))
    assert list(examples.source) == list(examples.counterparts)
    check_elicited(editable, build(editable, with_context(concept, CONTEXT, "refused")))


def test_the_prefix_is_part_of_the_target_response() -> None:
    editable = tiny_editable()
    context = Context(prefix="w70 w71")
    concept = with_context(plain_concept(), context)
    examples = build(editable, concept, {"data.max_new_tokens": 4, "data.max_base_tokens": 4})
    for one, chat in zip(examples.source_examples, examples.source, strict=True):
        (rest,) = generate_base(editable, [(one.prompt, "w70 w71")], max_new_tokens=4)
        assert response_text(editable, chat) == f"w70 w71 {rest.text}"
    assert list(examples.source) == list(examples.counterparts)


def test_a_system_turn_is_merged_and_the_user_turn_is_wrapped() -> None:
    turns = (Message("system", "own"), Message("user", "a"), Message("assistant", "b"))
    example = Example((*turns, Message("user", "c")), "x", prefill="p")
    context = Context("all", (Demonstration("q", "r"),), "pre", "{prompt} Be brief.")
    assert context.apply(example) == replace(
        example,
        prompt=(
            Message("system", "all\n\nown"),
            Message("user", "q"),
            Message("assistant", "r"),
            Message("user", "a"),
            Message("assistant", "b"),
            Message("user", "c Be brief."),
        ),
    )


def test_equal_requests_are_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    editable, generated = tiny_editable(), []
    real = editable.model.generate
    monkeypatch.setattr(
        editable.model,
        "generate",
        lambda **values: generated.append(len(values["input_ids"])) or real(**values),
    )
    request, other = ((Message("user", "w1"),), ""), ((Message("user", "w2"),), "")
    responses = generate_base(editable, [request, other, request], max_new_tokens=3)
    assert generated == [2]
    assert responses[0] == responses[2]


def test_unpaired_prompts_with_responses_on_the_target_alone() -> None:
    editable = tiny_editable()
    source = [{"prompt": f"w{i} w80", "label": "negative"} for i in range(8)]
    target = [{"prompt": f"w{i}", "label": "positive", "response": "w90"} for i in range(8)]
    concept = Concept.from_dataset([*source, *target])
    concept = replace(
        concept, directions={"raise": DirectionSpec(("negative",), ("positive",), ())}
    )
    examples = build(editable, concept)
    assert examples.counterparts == []
    assert len(examples.chosen) == len(examples.source) == 5
    for chat in examples.chosen:
        assert response_text(editable, chat) == "w90"


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_prompts_with_their_responses_are_pairs(count: int) -> None:
    editable = tiny_editable()
    concept = Concept.from_pairs([f"w{i}" for i in range(count)], responses=["w90"] * count)
    for split in ("train", "validation"):
        examples = build(editable, concept, {"data.max_new_tokens": 2}, split)
        assert len(examples.source) == len(examples.counterparts) >= 1
        for chat, base in zip(examples.chosen, examples.rejected, strict=True):
            assert response_text(editable, chat) == "w90"
            assert response_text(editable, base) != "w90"


def wrapped_concept() -> Concept:
    """The tiny concept, with a wrapped form of every source prompt."""
    concept = tiny_concept()
    wrapped = [
        replace(one, label="attack", prompt=(Message("user", f"w90 {one.prompt[0].content}"),))
        for one in concept.examples["train"]
        if one.label == "negative"
    ]
    spec = replace(concept.directions["raise"], source=("negative", "attack"))
    return replace(add_examples(concept, wrapped), directions={"raise": spec})


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_a_request_and_its_wrapped_form_are_one_labelled_example(share: float, count: int) -> None:
    overrides = {"data.num_examples": 6, "data.wrapped_share": share, "data.prefill_tokens": 2}
    examples = build(tiny_editable(), wrapped_concept(), overrides)
    labels = [one.label for one in examples.source_examples]
    assert labels == ["negative"] * 6 + ["attack"] * count
    pairs = {one.pair for one in examples.source_examples}
    assert len(pairs) == 6
    # Prefills are made of the plain requests alone.
    assert len(examples.source) == len(examples.counterparts) == 12 + count


def elicited_concept() -> Concept:
    concept = tiny_concept()
    context = Context(system="w50 w51")
    return replace(
        concept, directions={"raise": replace(concept.directions["raise"], context=context)}
    )


@pytest.mark.parametrize("accepted", [True, False])
def test_the_models_own_response_is_learned_where_it_shows_the_behaviour(accepted: bool) -> None:
    editable, concept = tiny_editable(), elicited_concept()
    data = tiny_config({"data.num_examples": 4}).data
    classified: list[str] = []

    def shows(_: Example, response: str) -> bool:
        classified.append(response)
        return accepted

    made = build_examples(editable, concept, "raise", "train", data, 0, shows=shows)
    given = tuple(editable.tokenizer("w7 w8", add_special_tokens=False)["input_ids"])
    learned = [chat.ids[chat.start :][:2] for chat in made.source]
    assert len(classified) == 4
    assert all((ids == given) is not accepted for ids in learned)
    kept = build_examples(editable, concept, "raise", "train", data, 0)
    assert all(chat.ids[chat.start :][:2] == given for chat in kept.source)


def test_a_cut_response_gets_no_end_token() -> None:
    editable = tiny_editable()
    concept = tiny_concept()
    train = tuple(replace(one, response=None) for one in concept.examples["train"])
    concept = replace(concept, examples={**concept.examples, "train": train})
    examples = build(editable, concept, {"data.max_base_tokens": 3})
    ends = [chat.ids[-1] == editable.tokenizer.eos_token_id for chat in examples.retain]
    lengths = [len(chat.ids) - chat.start for chat in examples.retain]
    assert all(end or length <= 4 for end, length in zip(ends, lengths, strict=True))
    assert not all(ends)
