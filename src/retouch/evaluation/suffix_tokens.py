"""Tokens that can be typed: suffixes that come back from their text as the same tokens."""

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

MARK = "\ue000"  # stands for the suffix while the chat is tokenized; no text holds it
DRAWS = 64  # first suffixes that are tried


@dataclass(frozen=True)
class Frame:
    """What stands around a suffix.

    Attributes:
        left: the text before it.
        right: the text after it.
        joiner: what parts it from the request: nothing, or a space.
        before: the tokens before it.
        after: the tokens after it.
    """

    left: str
    right: str
    joiner: str
    before: list[int]
    after: list[int]


def allowed_tokens(editable: EditableModel) -> torch.Tensor:
    """The tokens `[n]` a suffix is made of: no special ones, and each comes back from its text."""
    tokenizer = editable.tokenizer
    banned = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    size = min(len(tokenizer), int(editable.model.config.get_text_config().vocab_size))
    tokens = [i for i in range(size) if i not in banned]
    texts = decode(editable, [[i] for i in tokens])
    back = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [
        token
        for token, text, ids in zip(tokens, texts, back, strict=True)
        if ids == [token] and text.strip() and text.isprintable()
    ]
    return torch.tensor(kept, dtype=torch.long)


def with_suffix(prompt: Sequence[Message], suffix: str) -> tuple[Message, ...]:
    """The prompt with the suffix behind its last turn."""
    *turns, last = prompt
    return (*turns, replace(last, content=last.content + suffix))


def begin(
    editable: EditableModel,
    prompt: Sequence[Message],
    tokens: list[int],
    length: int,
    rng: random.Random,
) -> tuple[Frame, list[int]]:
    """The frame of the prompt, and a random suffix that survives in it.

    Raises:
        ModelError: none of this length does, or the request stands more than once in what the
            model is given.
    """
    text = prompt_text(editable.tokenizer, editable.rewrite_prompt(with_suffix(prompt, MARK)))
    if text.count(MARK) != 1:
        raise ModelError(
            f"The request stands {text.count(MARK)} times in what the model is given.",
            "A suffix can be searched where it stands once.",
        )
    left, right = text.split(MARK)
    drawn = [rng.choices(tokens, k=length) for _ in range(DRAWS)] if tokens else []
    found: list[tuple[Frame, list[int]]] = []
    # Some tokens carry the space before them, others want one.
    for joiner in ("", " "):
        here: list[tuple[Frame, list[int]]] = []
        for suffix, ids in zip(
            drawn, _tokenized(editable, left, right, joiner, drawn), strict=True
        ):
            at = _place(ids, suffix)
            if at is not None:
                frame = Frame(left, right, joiner, ids[:at], ids[at + length :])
                here.append((frame, suffix))
        found = max(found, here, key=len)
    if not found:
        raise ModelError(
            f"No suffix of {length} tokens comes back from its text as the same tokens.",
            "Try another length.",
        )
    return found[0]


def _place(ids: list[int], suffix: list[int]) -> int | None:
    """Where the suffix stands last."""
    n = len(suffix)
    places = (at for at in range(len(ids) - n, -1, -1) if ids[at : at + n] == suffix)
    return next(places, None)


def _tokenized(
    editable: EditableModel, left: str, right: str, joiner: str, suffixes: Sequence[list[int]]
) -> list[list[int]]:
    """The whole prompt with each suffix as text, tokenized as `prompt_ids` does it."""
    if not suffixes:
        return []
    texts = [f"{left}{joiner}{text}{right}" for text in decode(editable, suffixes)]
    ownbegin = bool(getattr(editable.tokenizer, "chat_template", None))
    ids: list[list[int]] = editable.tokenizer(texts, add_special_tokens=not ownbegin)["input_ids"]
    return ids


def surviving(
    editable: EditableModel, frame: Frame, suffixes: Sequence[list[int]]
) -> list[list[int]]:
    """The suffixes that come back from their text as the same tokens, within the prompt."""
    back = _tokenized(editable, frame.left, frame.right, frame.joiner, suffixes)
    return [
        suffix
        for suffix, ids in zip(suffixes, back, strict=True)
        if ids == [*frame.before, *suffix, *frame.after]
    ]


def decode(editable: EditableModel, suffixes: Sequence[list[int]]) -> list[str]:
    """The suffixes as text."""
    texts: list[str] = editable.tokenizer.batch_decode(suffixes, clean_up_tokenization_spaces=False)
    return texts
