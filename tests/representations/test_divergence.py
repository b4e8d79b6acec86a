from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.char_tokenizer import add_random_adapter, char_editable
from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.core.types import Message
from retouch.models.editable_model import EditableModel
from retouch.representations.divergence import kl_divergence, token_kl

PROMPTS = ["Hi", "What is the capital of France?", "Count these: a, b.", "So?"]


def tokenized(editable: EditableModel) -> list[TokenizedChat]:
    return [
        tokenize_chat(
            editable.tokenizer, (Message("user", text),), f"Well, {i}", "Oh" if i % 2 else ""
        )
        for i, text in enumerate(PROMPTS)
    ]


def reference_kl(editable: EditableModel, chat: TokenizedChat) -> list[float]:
    """The definition, for one text, in float64."""
    ids = torch.tensor([chat.ids])
    with torch.no_grad():
        edited = editable.model(input_ids=ids).logits[0].double().softmax(-1)
        with editable.base_model():
            base = editable.model(input_ids=ids).logits[0].double().softmax(-1)
    values: list[float] = (base * (base.log() - edited.log())).sum(-1)[:-1].tolist()
    return values


def test_kl_equals_the_definition_for_every_batch_size() -> None:
    editable = add_random_adapter(char_editable(), 0.3)
    chats = tokenized(editable)
    for batch_size in (1, 3, 8):
        for chat, found in zip(chats, token_kl(editable, chats, batch_size), strict=True):
            expected = reference_kl(editable, chat)
            assert sum(expected) > 1e-3
            assert found.total == pytest.approx(sum(expected), rel=1e-3)
            response = sum(expected[chat.start - 1 :])
            assert found.response_total == pytest.approx(response, rel=1e-3)
            assert found.count == len(chat.ids) - 1
            assert found.response_count == len(chat.ids) - chat.start


@pytest.mark.parametrize("adapter", [False, True])
def test_an_unchanged_model_has_no_divergence_from_its_base(adapter: bool) -> None:
    editable = char_editable()
    if adapter:
        add_random_adapter(editable, 0.0)
    for found in token_kl(editable, tokenized(editable), 2):
        assert (found.total, found.response_total) == (0.0, 0.0)


def test_larger_edits_diverge_more() -> None:
    totals = []
    for scale in (0.01, 0.1, 1.0):
        editable = add_random_adapter(char_editable(), scale)
        totals.append(sum(one.response_total for one in token_kl(editable, tokenized(editable), 4)))
    assert totals == sorted(totals)
    assert totals[0] > 0


def test_tokens_that_the_base_excludes_do_not_give_nan() -> None:
    editable = add_random_adapter(char_editable(), 0.3)
    head = editable.model.get_base_model().lm_head

    def exclude(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([5]), float("-inf"))

    handle = head.register_forward_hook(exclude)
    found = token_kl(editable, tokenized(editable), 4)
    handle.remove()
    assert all(0 < one.total < float("inf") for one in found)


def test_the_gradient_is_the_difference_of_the_distributions() -> None:
    torch.manual_seed(0)
    base, edited = torch.randn(2, 3, 7)
    expected = torch.nn.functional.kl_div(
        edited.log_softmax(-1), base.softmax(-1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(base, edited), expected)
    edited.requires_grad_()
    kl_divergence(base, edited).sum().backward()  # type: ignore[no-untyped-call]
    assert edited.grad is not None
    torch.testing.assert_close(edited.grad, edited.softmax(-1) - base.softmax(-1))
