"""A model and its adapter are measured on suites, which neither has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import retouch
from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.edited import example
from retouch import pipeline
from retouch.concepts.concept import Concept, DirectionSpec, MetricSpec
from retouch.core.errors import DataError
from retouch.models import adapters
from retouch.suites.registry import load_suite_concepts

LETTERS = "abcd"


@pytest.fixture
def suites(folder: Any) -> list[Path]:
    """A suite of each kind: `ask`, `choose`, `compare` and `read`, with four rows each."""
    folder.write("ask.csv", [{"q": f"Sew {one}?"} for one in LETTERS])
    folder.write("choose.jsonl", [{"q": f"{one}?", "c": [one, "no"], "a": 0} for one in LETTERS])
    folder.write("compare.csv", [{"m": f"He sews {one}.", "l": f"She {one}."} for one in LETTERS])
    folder.write("read.jsonl", [{"t": f"A line {one}, of a text."} for one in LETTERS])
    keys = {
        "ask": (
            "csv",
            'prompt: "{q}"\nbetter: higher\nscorers: [refusal, kl_responses]\nmax_new_tokens: 3\n',
        ),
        "choose": (
            "jsonl",
            'kind: choices\nprompt: "{q}"\nmetrics:\n  one: {choices: c, correct: a}\n'
            "  mass: {choices: c, correct: a, scorer: mc2}\n",
        ),
        "compare": ("csv", 'kind: pairs\nmore: "{m}"\nless: "{l}"\n'),
        "read": ("jsonl", 'kind: text\ntext: "{t}"\npassage: 10\n'),
    }
    return [
        folder.suite(
            f"name: {name}\nsources: [{{file: {name}.{suffix}}}]\n{text}", f"suites/{name}.yaml"
        )
        for name, (suffix, text) in keys.items()
    ]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of an adapter that was trained on nothing."""
    path = tmp_path / "adapter"
    adapters.save(add_random_adapter(char_editable(), 0.3), path)
    return path


def test_every_kind_of_suite_has_a_base_and_an_edited_column(
    folder: Any, suites: list[Path], adapter: Path
) -> None:
    editable = char_editable()
    found = retouch.evaluate(editable, adapter=adapter, suites=suites, data_dir=folder.path)
    assert [(record.suite, record.metric, record.before.n) for record in found.metrics] == [
        ("ask", "refusal", 4),
        ("ask", "kl_responses", 4),
        ("choose", "one", 4),
        ("choose", "mass", 4),
        ("compare", "stereotype_share", 4),
        ("compare", "stereotype_log_odds", 4),
        ("read", "perplexity", 4),
    ]
    after = {record.metric: record.after for record in found.metrics}
    assert None not in after.values()
    assert after["kl_responses"].value > 0
    for name in ("mass", "perplexity"):  # the likelihoods are those of two models
        assert after[name].value != found.metrics[name].before.value
    assert (
        found.base_values.keys()
        == found.values.keys()
        == {(record.suite, record.metric) for record in found.metrics}
    )
    assert not editable.edited
    base = retouch.evaluate(editable, suites=suites, data_dir=folder.path)
    assert [record.before for record in base.metrics] == [r.before for r in found.metrics]
    assert {record.after for record in base.metrics} == {None}


def test_the_perplexity_of_a_random_model_is_near_its_vocabulary(
    folder: Any, suites: list[Path]
) -> None:
    editable = char_editable()
    editable.model.get_output_embeddings().weight.mul_(0.0)
    found = retouch.evaluate(editable, suites=suites[1:], data_dir=folder.path)
    vocabulary = editable.model.config.vocab_size
    assert found.metrics["perplexity"].before.value == pytest.approx(vocabulary, rel=1e-4)
    # A choice of n letters has the probability 1 / vocabulary**n: `no` is the less likely one.
    assert found.metrics["mass"].before.value == pytest.approx(1 / (1 + 1 / vocabulary))
    assert found.metrics["one"].before.value == 1.0


def test_a_suite_has_its_own_length_of_responses_and_a_concept_the_given_one(
    folder: Any, suites: list[Path]
) -> None:
    examples = tuple(example(f"Do {one}.", "attack") for one in LETTERS)
    concept = Concept(
        "own",
        "",
        "",
        {"train": (), "validation": examples, "test": ()},
        {"raise": DirectionSpec(("attack",), ("attack",), ())},
        metrics=(MetricSpec("own", "refusal", ("attack",), "refusal"),),
    )
    found = retouch.evaluate(
        char_editable(),
        concepts=[concept],
        suites=suites[:1],
        data_dir=folder.path,
        split="validation",
        limit=3,
        max_new_tokens=6,
    )
    assert [(record.suite, record.before.n) for record in found.metrics] == [
        ("own", 3),
        ("ask", 3),
        ("ask", 3),
    ]
    lengths = {
        name: {len(s.response) for s in found.samples if s.suite == name} for name in ("own", "ask")
    }
    assert max(lengths["own"]) == 6
    assert max(lengths["ask"]) == 3
    # The concept's first ones; the suite's evenly spaced ones.
    prompts = [sample.prompt[-1].content for sample in found.samples]
    assert prompts == ["Do a.", "Do b.", "Do c.", "Sew a?", "Sew b?", "Sew c?"]


def test_a_limit_counts_questions_pairs_and_passages(folder: Any, suites: list[Path]) -> None:
    found = retouch.evaluate(char_editable(), suites=suites, data_dir=folder.path, limit=2)
    assert {record.before.n for record in found.metrics} == {2}
    assert [s.prompt[0].content for s in found.samples] == ["Sew a?", "Sew c?"]


def no_model(*arguments: Any) -> None:
    raise AssertionError("The model is loaded before the suites are checked.")


def test_a_suite_may_have_its_own_limit(folder: Any) -> None:
    folder.write("data.jsonl", [{"text": f"request {i}"} for i in range(6)])
    text = "sources: [{file: data.jsonl}]\nprompt: '{text}'\nbetter: higher\n"
    file = folder.suite(text)

    def count(name: Any, limit: int | None = None) -> int:
        (concept,) = load_suite_concepts([name], limit=limit)
        return len(concept.examples["test"])

    assert [count(file), count(f"{file}:4"), count(f"{file}:4", 2), count(f"{file}:9", 3)] == [
        *(6, 4, 4, 6)
    ]
    with pytest.raises(DataError, match=":0") as error:
        count(f"{file}:0")
    assert error.value.code == "suite-limit"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("prompt: '{q}'\nbetter: lower\nscorers: [refusel]\n", "scorer-unknown"),
        ("prompt: '{q}'\nbetter: lower\nscorers: [correct]\n", "metric-accept"),
        ("prompt: '{z}'\nbetter: lower\n", "column-missing"),
        ("sources: [{file: none.csv}]\nprompt: '{q}'\nbetter: lower\n", "suite-data-missing"),
    ],
)
def test_a_wrong_suite_is_an_error_before_the_model_is_loaded(
    folder: Any, monkeypatch: pytest.MonkeyPatch, text: str, code: str
) -> None:
    folder.write("data.csv", [{"q": "Sew."}])
    origin = "" if "sources" in text else "sources: [{file: data.csv}]\n"
    suite = folder.suite(origin + text)
    monkeypatch.setattr(pipeline, "load_model", no_model)
    with pytest.raises(DataError) as error:
        retouch.evaluate("pocket", suites=[suite])
    assert error.value.code == code


def test_a_text_without_words_has_no_perplexity(folder: Any) -> None:
    suite = folder.suite("sources: [{file: data.jsonl}]\nkind: text\ntext: '{t}'\n")
    folder.write("data.jsonl", [{"t": " \n"}, {"t": ""}])
    with pytest.raises(DataError, match="mine"):
        retouch.evaluate(char_editable(), suites=[suite])


def test_two_suites_of_one_name_are_an_error_and_the_same_one_counts_once(folder: Any) -> None:
    folder.write("data.csv", [{"q": "Sew."}, {"q": "Knit."}])
    text = "sources: [{file: data.csv}]\nprompt: '{q}'\nbetter: lower\n"
    suite = folder.suite(text)
    found = retouch.evaluate(char_editable(), suites=[suite, suite], max_new_tokens=2)
    assert [one.metric for one in found.metrics] == ["refusal", "degenerate"]
    other = folder.suite(text.replace("lower", "higher"), "other.yaml")
    with pytest.raises(DataError, match="Two suites have the name mine") as error:
        retouch.evaluate(char_editable(), suites=[suite, other])
    assert error.value.code == "suite-duplicate"
