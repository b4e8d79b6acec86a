"""A suite of each kind becomes a concept with a test split and metrics."""

from __future__ import annotations

from typing import Any

import pytest

from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import DataError
from retouch.evaluation.scorers import check_metrics

ASK = 'prompt: "{q}"\nbetter: higher\n'
CHOOSE = 'kind: choices\nprompt: "{q}"\n'
TWO = 'kind: pairs\nmore: "{a}"\nless: "{b}"\n'
BY_ROW = 'kind: pairs\ntext: "{t}"\nside: s\nmore: pro\nless: anti\npair: "{n}"\n'


def examples(concept: Concept) -> tuple[Example, ...]:
    assert not concept.examples["train"]
    assert not concept.examples["validation"]
    return concept.examples["test"]


def answers(concept: Concept) -> list[tuple[str, str | None]]:
    return [(example.label, example.response) for example in examples(concept)]


# Requests.


def test_requests_become_prompts_and_a_metric_for_each_scorer(folder: Any) -> None:
    text = (
        "system: Be brief.\nprefill: Sure\naccept: '{a}'\ngroup: '{k}'\n"
        "scorers: [correct, degenerate, kl_tokens]\nmax_new_tokens: 7\n"
    )
    rows = [{"q": "1 + 1?", "a": 2, "k": "sum", "id": "x"}, {"q": "2 + 2?", "a": 4, "k": "sum"}]
    concept = folder.load(text + ASK, *rows)
    first, second = examples(concept)
    assert [(turn.role, turn.content) for turn in first.prompt] == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
    ]
    assert (first.prefill, first.accept, first.group, first.entity) == ("Sure", ("2",), "sum", "x")
    assert (second.entity, second.response, second.pair) == ("2", None, None)
    assert [spec.scorer for spec in concept.metrics] == ["correct", "degenerate", "kl_tokens"]
    assert [spec.better for spec in concept.metrics] == ["higher", "lower", "lower"]
    assert [spec.unit == "rate" for spec in concept.metrics] == [True, True, False]
    assert {spec.max_new_tokens for spec in concept.metrics} == {7}
    assert concept.name == "mine"
    assert "CC0-1.0" in concept.description
    check_metrics(concept)


TEMPLATES = (
    'templates:\n  - sources: [{file: a.jsonl}]\n  - {sources: [{file: b.csv}], slot: "X"}\n'
)


def test_every_request_is_put_into_every_template(folder: Any) -> None:
    folder.write("a.jsonl", [{"id": 5, "template": "<[INSERT PROMPT HERE]|[INSERT PROMPT HERE]>"}])
    folder.write("b.csv", [{"template": "So: X"}, {"template": "X {q} now"}])
    rows = [{"q": f"Sew {i}."} for i in range(4)]
    concept = folder.load(f"system: Hi.\n{TEMPLATES}{ASK}", *rows, limit=2)
    made = examples(concept)
    assert [example.prompt[-1].content for example in made] == [
        *("<Sew 0.|Sew 0.>", "<Sew 2.|Sew 2.>"),
        *("So: Sew 0.", "So: Sew 2."),
        *("Sew 0. {q} now", "Sew 2. {q} now"),
    ]
    assert {example.prompt[0].content for example in made} == {"Hi."}
    groups = [example.group for example in made]
    assert groups[0] == "a-5"
    assert groups[::2] == groups[1::2]
    assert len(set(groups)) == 3
    assert [example.entity for example in made] == ["1", "3"] * 3
    assert [example.request for example in made] == ["Sew 0.", "Sew 2."] * 3


def test_a_template_without_the_slot_is_an_error_with_its_place(folder: Any) -> None:
    folder.write("a.jsonl", [{"template": "[INSERT PROMPT HERE]"}, {"template": "no slot"}])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: .*INSERT PROMPT HERE") as error:
        folder.load(f"{TEMPLATES}{ASK}", {"q": "Sew."})
    assert error.value.code == "template-slot"


# Choices.


@pytest.mark.parametrize(
    "row",
    [
        {"c": ["hat", "cap", "bag"], "a": [0, 1, 0]},
        {"c": ["hat", "cap", "bag"], "a": [False, True, False]},
        {"c": ["hat", "cap", "bag"], "a": 1},
        {"c": ["hat", "cap", "bag"], "a": "cap"},
        {"c": ["hat", "cap", "bag"], "a": " cap\n"},
        {"c": ["0", "1", "2"], "a": 1},
        {"c": ["1", "0", "2"], "a": "0"},
    ],
)
def test_the_correct_choice_is_given_by_labels_an_index_or_its_text(
    folder: Any, row: dict[str, Any]
) -> None:
    text = f"{CHOOSE}system: Be brief.\nmetrics: {{acc: {{choices: c, correct: a}}}}\n"
    concept = folder.load(text, {"q": "Which?", **row})
    assert answers(concept) == [
        ("acc-false", row["c"][0]),
        ("acc-true", row["c"][1]),
        ("acc-false", row["c"][2]),
    ]
    assert concept.metrics == (
        MetricSpec("mine", "acc", ("acc-true", "acc-false"), "mc1", better="higher"),
    )
    for example in examples(concept):
        assert [turn.content for turn in example.prompt] == ["Be brief.", "Which?"]


def test_the_choices_of_a_question_are_a_pair_and_several_metrics_stay_apart(folder: Any) -> None:
    text = (
        f"{CHOOSE}metrics:\n  one: {{choices: [A, B], correct: a}}\n"
        "  many: {choices: c, correct: l, scorer: mc2}\n"
    )
    rows = [{"q": f"Is it {i}?", "a": "B", "c": ["x", "y", "z"], "l": [1, 0, 1]} for i in range(6)]
    concept = folder.load(text, *rows, limit=3)
    assert [spec.scorer for spec in concept.metrics] == ["mc1", "mc2"]
    pairs: dict[Any, list[Example]] = {}
    for example in examples(concept):
        pairs.setdefault(example.pair, []).append(example)
    assert [made[0].prompt[0].content for made in pairs.values()] == [
        f"Is it {i}?" for i in (0, 2, 4)
    ]
    for made in pairs.values():
        assert len({example.prompt for example in made}) == 1
        assert [example.label for example in made] == [
            *("one-false", "one-true"),
            *("many-true", "many-false", "many-true"),
        ]
    check_metrics(concept)


@pytest.mark.parametrize(
    ("choices", "row"),
    [
        ("c", {"c": "hat", "a": 0}),
        ("c", {"c": ["hat"], "a": 0}),
        ("c", {"c": ["hat", "cap"], "a": 2}),
        ("c", {"c": ["hat", "cap"], "a": "bag"}),
        ("c", {"c": ["hat", "cap"], "a": [0, 0]}),
        ("c", {"c": ["hat", "cap"], "a": [1, 1]}),
        ("c", {"c": ["hat", "cap"], "a": [1]}),
        ("c", {"c": ["hat", "cap"], "a": True}),
        ("c", {"c": ["hat", "cap"], "a": -1}),
        ("[A]", {"a": "A"}),
    ],
)
def test_choices_of_which_none_or_all_are_correct_are_an_error(
    folder: Any, choices: str, row: dict[str, Any]
) -> None:
    text = f"{CHOOSE}metrics: {{acc: {{choices: {choices}, correct: a}}}}\n"
    with pytest.raises(DataError, match=r"data\.jsonl, line 1: ") as error:
        folder.load(text, {"q": "Which?", **row})
    assert error.value.code == "choices-invalid"


# Pairs.


def test_two_columns_are_a_pair(folder: Any) -> None:
    rows = [{"a": f"He sews {i}.", "b": f"She sews {i}.", "k": f"k{i}"} for i in range(6)]
    concept = folder.load(f"{TWO}group: '{{k}}'\n", *rows, limit=3)
    assert answers(concept) == [
        (label, f"{word} sews {i}.")
        for i in (0, 2, 4)
        for label, word in (("more", "He"), ("less", "She"))
    ]
    made = examples(concept)
    assert [example.group for example in made] == ["k0", "k0", "k2", "k2", "k4", "k4"]
    assert [one.pair for one in made[::2]] == [one.pair for one in made[1::2]]
    assert len({example.pair for example in made}) == 3
    assert all(example.prompt == () for example in made)
    assert [(spec.metric, spec.scorer) for spec in concept.metrics] == [
        ("stereotype_share", "likelier"),
        ("stereotype_log_odds", "log_odds"),
    ]
    check_metrics(concept)


def test_two_rows_are_a_pair_and_incomplete_ones_are_left_out(folder: Any) -> None:
    order = [(2, "anti"), (0, "pro"), (1, "pro"), (2, "pro"), (0, "anti"), (3, "other"), (4, "pro")]
    rows = [{"n": n, "s": side, "t": f"{side} {n}"} for n, side in order]
    assert answers(folder.load(BY_ROW, *rows)) == [
        *(("more", "pro 2"), ("less", "anti 2")),
        *(("more", "pro 0"), ("less", "anti 0")),
    ]
    # The sample and the limit count pairs.
    assert len(examples(folder.load(f"{BY_ROW}sample: {{count: 1}}\n", *rows))) == 2
    assert len(examples(folder.load(BY_ROW, *rows, limit=1))) == 2


def test_a_side_may_be_a_number(folder: Any) -> None:
    text = BY_ROW.replace("pro", '"1"').replace("anti", '"0"')
    rows = [{"n": 0, "s": side, "t": f"text {side}"} for side in (0, 1)]
    assert answers(folder.load(text, *rows)) == [("more", "text 1"), ("less", "text 0")]


def test_rows_of_which_none_are_a_pair_are_an_error(folder: Any) -> None:
    with pytest.raises(DataError, match="mine") as error:
        folder.load(BY_ROW, {"n": 0, "s": "pro", "t": "a"}, {"n": 1, "s": "anti", "t": "b"})
    assert error.value.code == "suite-empty"
    assert "'pro'" in error.value.hint


# Text.


def test_lines_become_passages_that_contain_the_whole_text(folder: Any) -> None:
    lines = [f"line {i} of the text\n" if i % 3 else "\n" for i in range(40)]
    rows = [{"t": line} for line in lines]
    concept = folder.load("kind: text\ntext: '{t}'\npassage: 100\n", *rows)
    texts = [example.response or "" for example in examples(concept)]
    assert "\n".join(texts) == "".join(lines).removesuffix("\n")
    assert all(90 <= len(text) < 150 for text in texts[:-1])
    assert [(spec.scorer, spec.better) for spec in concept.metrics] == [("perplexity", "lower")]
    check_metrics(concept)
    some = folder.load("kind: text\ntext: '{t}'\npassage: 100\n", *rows, limit=2)
    assert [one.response for one in examples(some)] == [texts[0], texts[len(texts) // 2]]


def test_a_short_text_is_one_passage(folder: Any) -> None:
    concept = folder.load("kind: text\ntext: '{t}'\n", {"t": "A hat.\n"}, {"t": "A cap.\n"})
    assert answers(concept) == [("text", "A hat.\nA cap.")]
