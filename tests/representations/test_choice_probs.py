from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Example
from retouch.core.errors import DataError
from retouch.core.types import Message
from retouch.representations.choice_probs import choice_probs

EXAMPLES = [Example((Message("user", f"w{i}"),), "person") for i in range(3)]


def test_choices_with_different_first_tokens_are_compared_at_these() -> None:
    editable = tiny_editable()
    probs = choice_probs(editable, EXAMPLES, ("w7 w9", "w8"), 2)
    first, second = (editable.tokenizer(word)["input_ids"][0] for word in ("w7", "w8"))
    for example, prob in zip(EXAMPLES, probs, strict=True):
        ids = torch.tensor([prompt_ids(editable.tokenizer, example.prompt)])
        with torch.no_grad():
            logits = editable.model(input_ids=ids).logits[0, -1].double()
        expected = torch.sigmoid(logits[first] - logits[second])
        assert prob == pytest.approx(float(expected), rel=1e-4)


def test_choices_with_a_common_beginning_are_compared_as_a_whole() -> None:
    editable = tiny_editable()
    (prob,) = choice_probs(editable, EXAMPLES[:1], ("w5 w7 w9", "w5 w8"))
    prompt = prompt_ids(editable.tokenizer, EXAMPLES[0].prompt)

    def logprob(text: str) -> torch.Tensor:
        tokens = editable.tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = editable.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
        logprobs = logits.double().log_softmax(-1)
        return sum(  # type: ignore[return-value]
            logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(tokens)
        )

    expected = torch.sigmoid(logprob("w5 w7 w9") - logprob("w5 w8"))
    assert prob == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("choices", [("w5",), ("w5", "w5 w6"), ("w5", "w5")])
def test_choices_must_be_two_that_differ(choices: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        choice_probs(tiny_editable(), EXAMPLES, choices)
    assert error.value.code == "choices-invalid"


def test_the_choices_of_an_example_are_compared_in_place_of_the_metrics() -> None:
    editable = tiny_editable()
    own = replace(EXAMPLES[0], choices=("w3", "w4"))
    probs = choice_probs(editable, [own, EXAMPLES[1]], ("w7", "w8"))
    (first,) = choice_probs(editable, EXAMPLES[:1], ("w3", "w4"))
    (second,) = choice_probs(editable, EXAMPLES[1:2], ("w7", "w8"))
    assert probs == pytest.approx([first, second], rel=1e-5)


def test_running_text_is_continued_by_the_choices() -> None:
    editable = tiny_editable()
    text = Example((), "person", prefill="w1 w2")
    (prob,) = choice_probs(editable, [text], ("w7", "w8"))
    first, second = (editable.tokenizer(word)["input_ids"][0] for word in ("w7", "w8"))
    ids = torch.tensor([prompt_ids(editable.tokenizer, (), "w1 w2")])
    with torch.no_grad():
        logits = editable.model(input_ids=ids).logits[0, -1].double()
    expected = torch.sigmoid(logits[first] - logits[second])
    assert prob == pytest.approx(float(expected), rel=1e-4)
