"""The model card: its parts, and the escaping of users' texts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig, LoadConfig
from retouch.core.types import Record, Score
from retouch.reporting.model_card import Form, escape, render_card

CONCEPT = Concept(
    "safety", "Safety under attack", "Declines what harms.", {}, {}, weakens="lower", hash="ab" * 32
)
RECORDS = [
    Record(
        "safety",
        "attack_refusal",
        "rate",
        "higher",
        Score(0.05, 0.02, 0.11, 200),
        Score(0.97, 0.94, 0.99, 200),
    ),
    Record(
        "capability",
        "drift",
        "nats a token",
        "lower",
        Score(0, 0, 0, 60),
        Score(0.0042, 0, 0.01, 60),
    ),
]
PROVENANCE: dict[str, Any] = {
    "layers": {
        "adapted": [3, 4],
        "read": [5],
        "reason": "patching layer 5 recovers 90%",
        "recovery": {"0": 0.0, "10": 0.9, "2": 0.1},
    },
    "versions": {"torch": "2.13.0"},
}


def front_matter(card: str) -> dict[str, Any]:
    _, block, _ = card.split("---\n", 2)
    values = yaml.safe_load(block)
    assert isinstance(values, dict)
    return values


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = render_card(EditConfig(model="org/model-1b"), CONCEPT, RECORDS, PROVENANCE)
    values = front_matter(card)
    assert values["library_name"] == "peft"
    assert values["base_model"] == "org/model-1b"
    assert values["base_model_relation"] == "adapter"
    assert "safety" in values["tags"]
    merged = front_matter(
        render_card(EditConfig(model="org/model-1b"), CONCEPT, [], {}, form="merged")
    )
    assert merged["library_name"] == "transformers"


@pytest.mark.parametrize("model", ["pocket", "/home/me/model", "./model"])
def test_a_model_that_is_not_on_the_hub_is_not_named_as_if(model: str) -> None:
    assert "base_model" not in front_matter(render_card(EditConfig(model=model), CONCEPT, [], {}))


def test_results_have_intervals_and_n() -> None:
    card = render_card(EditConfig(), CONCEPT, RECORDS, PROVENANCE)
    (line,) = [line for line in card.splitlines() if "attack refusal" in line]
    for part in ("5.0 %", "2.0–11.0", "97.0 %", "94.0–99.0", "200", "higher"):
        assert part in line
    assert "nats a token" in card
    assert "as few as 60" in card
    assert CONCEPT.hash in card
    assert "torch 2.13.0" in card


def test_recovery_is_listed_in_the_order_of_the_layers() -> None:
    card = render_card(EditConfig(), CONCEPT, RECORDS, PROVENANCE)
    assert "Adapted layers, 0-based: 3, 4." in card
    assert "Read layers (of the discriminators): 5." in card
    assert "patching layer 5 recovers 90%" in card
    assert "0: 0.00, 2: 0.10, 10: 0.90" in card


def test_the_limits_call_pocket_a_model_organism() -> None:
    assert "model organism" in render_card(EditConfig(), CONCEPT, RECORDS, {})
    assert "model organism" not in render_card(EditConfig(model="org/m"), CONCEPT, RECORDS, {})


def test_a_weakening_edit_begins_with_a_warning_and_the_reason() -> None:
    config = EditConfig(direction="lower", allow_weakening="to test | a <b>filter</b>")
    card = render_card(config, CONCEPT, RECORDS, PROVENANCE)
    assert card.index("weakens the model's safety") < card.index("Declines what harms")
    assert "to test \\| a \\<b\\>filter" in card
    assert "safety-weakened" in front_matter(card)["tags"]
    assert "weakens" not in render_card(EditConfig(), CONCEPT, RECORDS, PROVENANCE)


def test_a_run_without_an_evaluation_says_so() -> None:
    assert "Nothing was measured" in render_card(EditConfig(), CONCEPT, [], {})


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "[x](http://y)", "a | b", "# title", "`code`", "line\n---\nline"],
)
def test_texts_of_users_are_not_markup(text: str) -> None:
    concept = Concept("mine", text, text, {}, {})
    card = render_card(EditConfig(concept="mine"), concept, [], {})
    body = card.split("---\n", 2)[2]
    assert escape(text) in body
    assert text not in body.replace(escape(text), "")
    assert escape(text) != text


def test_quotes_in_a_path_stay_inside_the_code() -> None:
    card = render_card(EditConfig(model='m"\n```\nevil'), CONCEPT, [], {})
    (code,) = [part for part in card.split("```")[1:2] if part.startswith("python")]
    compile(code.removeprefix("python"), "card", "exec")
    assert card.count("```") == 2


@pytest.mark.parametrize("form", ["run", "peft", "merged"])
@pytest.mark.parametrize("model", ["pocket", "org/model"])
def test_the_loading_code_is_valid_python(form: Any, model: str) -> None:
    card = render_card(
        EditConfig(model=model, load=LoadConfig(revision="v1")), CONCEPT, [], {}, form=form
    )
    code = card.split("```")[1].removeprefix("python")
    compile(code, "card", "exec")
    assert ("PeftModel" in code) == (form != "merged")
    assert ('revision="v1"' in code) == (form != "merged")
    assert ("POCKET" in code) == (model == "pocket" and form != "merged")


@pytest.mark.parametrize("form", ["run", "peft", "merged"])
def test_the_loading_code_uses_the_class_that_the_model_was_loaded_with(form: Form) -> None:
    multimodal = "AutoModelForImageTextToText"
    for recorded, expected in (
        (multimodal, multimodal),
        (None, "AutoModelForCausalLM"),
        ("x(`", "AutoModelForCausalLM"),
    ):
        facts = {"model": {"name": "m", "auto_class": recorded}}
        card = render_card(EditConfig(model="org/model-1b"), CONCEPT, [], facts, form=form)
        assert f"import {expected}" in card
        assert "x(`" not in card
        assert ("AutoModelForCausalLM" in card) is (recorded != multimodal)


def test_the_outcome_is_the_first_line_below_the_title() -> None:
    text = "FAILED: attack_refusal <fell>."
    card = render_card(EditConfig(), CONCEPT, RECORDS, {"outcome": {"text": text}})
    below = card.partition("\n# ")[2].split("\n\n")[1]
    assert below == "**Outcome.** FAILED: attack\\_refusal \\<fell\\>."
    assert "Outcome" not in render_card(EditConfig(), CONCEPT, RECORDS, PROVENANCE)


def test_what_could_not_be_classified_is_on_the_card() -> None:
    note = "safety: 3 of 64 responses of the edited model could not be classified"
    results = render_card(EditConfig(), CONCEPT, RECORDS, {**PROVENANCE, "notes": [note]})
    table, _, after = results.partition("## Results")[2].partition(note)
    assert table.rstrip().endswith("|")
    assert after.startswith("\n\n## ")
