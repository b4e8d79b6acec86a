"""The probability of the first of two continuations, relative to both."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.concepts.concept import Example
from retouch.core.errors import DataError
from retouch.models.editable_model import EditableModel
from retouch.representations.logprobs import response_logprob


def choice_probs(
    editable: EditableModel,
    examples: Sequence[Example],
    choices: Sequence[str],
    batch_size: int = 64,
) -> list[float]:
    r"""$\frac{p(a)}{p(a) + p(b)}$ for each example, with the choices $a$ and $b$.

    For the model as it is now. A choice begins the response, after the example's prefill.
    If the first tokens of the choices differ, only these are compared, otherwise the whole
    continuations.

    Args:
        editable: the model.
        examples: the examples whose prompts are continued.
        choices: the two continuations; an example's own `choices` precede them.
        batch_size: sequences at a time.

    Raises:
        DataError: there are not two choices, or one of them is a prefix of the other.
    """
    chats = choice_chats(editable, examples, choices)
    return first_choice_probs(chats, response_logprob(editable, chats, batch_size)).tolist()


def choice_chats(
    editable: EditableModel, examples: Sequence[Example], choices: Sequence[str]
) -> list[TokenizedChat]:
    """Two chats of each example, whose responses are what decides between the choices.

    Raises:
        DataError: as for `choice_probs`.
    """
    return [
        chat
        for example in examples
        for chat in _continuations(editable, example, example.choices or choices)
    ]


def first_choice_probs(chats: Sequence[TokenizedChat], logprobs: torch.Tensor) -> torch.Tensor:
    """The probability `[examples]` of the first choice, relative to both.

    Args:
        chats: those of `choice_chats`.
        logprobs: the mean log-probability of each chat's response, nats a token.
    """
    lengths = torch.tensor([len(chat.ids) - chat.start for chat in chats])
    totals = (logprobs.cpu().double() * lengths).view(-1, 2)
    return torch.sigmoid(totals[:, 0] - totals[:, 1])


def _continuations(
    editable: EditableModel, example: Example, choices: Sequence[str]
) -> list[TokenizedChat]:
    """The prompt with each choice."""
    if len(choices) != 2:
        raise DataError(
            f"Two `choices` are compared, got {len(choices)}.",
            "Give the metric two `choices`.",
            code="choices-invalid",
        )
    # Tokenized as responses are that are cut before the end of the turn.
    prompt = editable.rewrite_prompt(example.prompt)
    chats = [
        tokenize_chat(editable.tokenizer, prompt, choice, example.prefill, truncated=True)
        for choice in choices
    ]
    ids, start = [chat.ids for chat in chats], chats[0].start
    shared = 0
    while shared < min(map(len, ids)) and ids[0][shared] == ids[1][shared]:
        shared += 1
    if shared in map(len, ids):
        raise DataError(
            f"`choices`: one of {choices[0]!r} and {choices[1]!r} is a prefix of the other.",
            "Give choices that differ in a token.",
            code="choices-invalid",
        )
    if shared == start:
        return [TokenizedChat(one[: shared + 1], shared) for one in ids]
    # The tokens that the choices share have equal probabilities, which cancel in the ratio.
    return [TokenizedChat(one, shared) for one in ids]
