"""Suffixes that are reproduced from their text: tokenized again, they are the same tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from retouch.concepts.chat import prompt_text
from retouch.core.errors import ModelError
from retouch.core.types import Message

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

PLACEHOLDER = "\ue000"  # for the suffix while the chat is tokenized; occurs in no text
INITIAL_DRAWS = 64  # random suffixes to choose the initial one from


@dataclass(frozen=True)
class SuffixContext:
    """The prompt around a suffix.

    Attributes:
        left: the text before it.
        right: the text after it.
        separator: the text between the request and the suffix: empty, or a space.
        before: the tokens before it.
        after: the tokens after it.
    """

    left: str
    right: str
    separator: str
    before: list[int]
    after: list[int]


def allowed_tokens(editable: EditableModel) -> torch.Tensor:
    """The tokens `[n]` of suffixes: printable, not special, and reproduced from their text."""
    tokenizer = editable.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    size = min(len(tokenizer), int(editable.model.config.get_text_config().vocab_size))
    tokens = [i for i in range(size) if i not in special]
    texts = decode(editable, [[i] for i in tokens])
    retokenized = tokenizer(texts, add_special_tokens=False)["input_ids"]
    allowed = [
        token
        for token, text, ids in zip(tokens, texts, retokenized, strict=True)
        if ids == [token] and text.strip() and text.isprintable()
    ]
    return torch.tensor(allowed, dtype=torch.long)


def with_suffix(prompt: Sequence[Message], suffix: str) -> tuple[Message, ...]:
    """The prompt with a suffix after its last turn's text."""
    *turns, last = prompt
    return (*turns, replace(last, content=last.content + suffix))


def initial_suffix(
    editable: EditableModel,
    prompt: Sequence[Message],
    tokens: list[int],
    length: int,
    rng: random.Random,
) -> tuple[SuffixContext, list[int]]:
    """A random suffix that is reproduced from its text within the prompt, and what surrounds it.

    Raises:
        ModelError: no suffix of this length is reproduced, or the model's input does not contain
            the request exactly once.
    """
    text = prompt_text(
        editable.tokenizer, editable.rewrite_prompt(with_suffix(prompt, PLACEHOLDER))
    )
    if text.count(PLACEHOLDER) != 1:
        raise ModelError(
            f"The model's input contains the request {text.count(PLACEHOLDER)} times.",
            "A suffix can be searched where it occurs once.",
            code="suffix-request-repeated",
        )
    left, right = text.split(PLACEHOLDER)
    drawn = [rng.choices(tokens, k=length) for _ in range(INITIAL_DRAWS)] if tokens else []
    best: list[tuple[SuffixContext, list[int]]] = []
    # Some tokens include the space before them, others need one.
    for separator in ("", " "):
        reproduced = []
        tokenized = _tokenize(editable, left, right, separator, drawn)
        for suffix, ids in zip(drawn, tokenized, strict=True):
            at = _last_occurrence(ids, suffix)
            if at is not None:
                context = SuffixContext(left, right, separator, ids[:at], ids[at + length :])
                reproduced.append((context, suffix))
        best = max(best, reproduced, key=len)
    if not best:
        raise ModelError(
            f"No suffix of {length} tokens is reproduced from its text.",
            "Try another length.",
            code="suffix-not-reproduced",
        )
    return best[0]


def _last_occurrence(ids: list[int], suffix: list[int]) -> int | None:
    n = len(suffix)
    starts = (at for at in range(len(ids) - n, -1, -1) if ids[at : at + n] == suffix)
    return next(starts, None)


def _tokenize(
    editable: EditableModel, left: str, right: str, separator: str, suffixes: Sequence[list[int]]
) -> list[list[int]]:
    """The whole prompt with each suffix as text, tokenized as in `prompt_ids`."""
    if not suffixes:
        return []
    texts = [f"{left}{separator}{text}{right}" for text in decode(editable, suffixes)]
    special = not editable.has_chat_template  # a template writes the special tokens itself
    ids: list[list[int]] = editable.tokenizer(texts, add_special_tokens=special)["input_ids"]
    return ids


def reproduced(
    editable: EditableModel, context: SuffixContext, suffixes: Sequence[list[int]]
) -> list[list[int]]:
    """The suffixes that are reproduced from their text within the prompt."""
    tokenized = _tokenize(editable, context.left, context.right, context.separator, suffixes)
    return [
        suffix
        for suffix, ids in zip(suffixes, tokenized, strict=True)
        if ids == [*context.before, *suffix, *context.after]
    ]


def decode(editable: EditableModel, suffixes: Sequence[list[int]]) -> list[str]:
    """The suffixes as text."""
    texts: list[str] = editable.tokenizer.batch_decode(suffixes, clean_up_tokenization_spaces=False)
    return texts
