"""The thought of a reasoning model is separated from its answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.core.thoughts import TOKENS, after_thought, kept_tokens, open_thought

ANSWER = "Here is the answer."
FORMATS = {
    "think": "<think>\nI can't know.\n</think>\n\n{}",
    "thinking": "<thinking>I can't know.</thinking>{}",
    "upper case": "<Think>I can't know.</THINK> {}",
    "magistral": "[THINK]I can't know.[/THINK]{}",
    "openthinker": "<|begin_of_thought|>\nI can't know.\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n{}\n<|end_of_solution|>",
    "answer tags": "<think>I can't know.</think><answer>{}</answer>",
    "harmony": "<|channel|>analysis<|message|>I can't know.<|end|><|start|>assistant"
    "<|channel|>final<|message|>{}<|return|>",
    "harmony without special tokens": "analysisI can't know.assistantfinal{}",
    "two thoughts": "<think>One.</think>\n<think>Two.</think>\n{}",
    "opened by the prompt": "Okay, I can't know.\n</think>\n\n{}",
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_what_follows_the_closed_thought_is_the_answer(form: str) -> None:
    assert after_thought(form.format(ANSWER)) == ANSWER
    assert after_thought(form.format("")) == ""


@pytest.mark.parametrize(
    "response",
    [
        "<think>\nOkay, the user",
        "<think>",
        "[THINK]Hm",
        "<|begin_of_thought|>\nFirst",
        "<think>One.</think><think>Two",
        "<|channel|>analysis<|message|>We need to",
        "<|channel|>analysis<|message|>Done.<|end|><|start|>assistant<|channel|>commentary",
        "analysisWe need to",
    ],
)
def test_a_thought_that_is_not_closed_has_no_answer(response: str) -> None:
    assert after_thought(response) is None


@pytest.mark.parametrize(
    "response", ["Use the tag <think> in HTML.", "analysis of the data", "An [THINK] tag", ""]
)
def test_a_marker_in_an_answer_opens_no_thought(response: str) -> None:
    assert after_thought(response) == response


def test_a_prefill_may_end_within_a_thought() -> None:
    assert after_thought("so I", "<think>\nOkay,") is None
    assert after_thought(f"so I can.</think>{ANSWER}", "<think>\nOkay,") == ANSWER
    assert after_thought(ANSWER, "<think>\n\n</think>\n\nSure.") == ANSWER


def test_a_template_may_open_the_thought() -> None:
    assert open_thought("<|im_start|>assistant\n<think>\n") == "<think>"
    assert open_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert open_thought("<|im_start|>assistant\n") == ""
    assert open_thought("<think>\nOkay, Sure, here") == "<think>"


def test_decoding_keeps_the_markers_alone() -> None:
    assert kept_tokens(frozenset({"<s>", "</s>", "[THINK]", "[/THINK]"})) <= TOKENS
    # The end of a turn of another format, such as that of Phi.
    assert not kept_tokens(frozenset({"<|end|>", "<|endoftext|>"}))
    assert "<|end|>" in kept_tokens(frozenset({"<|end|>", "<|channel|>", "<|return|>"}))


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_text_has_an_answer_or_none(response: str, prefill: str) -> None:
    found = after_thought(response, prefill)
    assert found is None or len(found) <= len(response)
