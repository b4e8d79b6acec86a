"""Chats as token ids, with the reply's place in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retouch.core.types import Message


@dataclass(frozen=True, slots=True)
class Rendered:
    """A tokenized chat with its reply.

    Attributes:
        ids: token ids of prompt, forced beginning and reply.
        start: the first position of the reply; `ids[start:]` ends with the end of the turn. The
            state at `start - 1` is the one in which the reply is decided.
    """

    ids: tuple[int, ...]
    start: int


def prompt_text(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> str:
    """The chat up to where the reply begins, or goes on after a forced beginning.

    A tokenizer without a chat template gets the plain fallback: `User: ...`, `Assistant:`.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return f"{text}{prefill}"
    plain = "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
    return f"{plain}\nAssistant:{' ' if prefill else ''}{prefill}"


def prompt_ids(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> list[int]:
    """The token ids after which the reply is to be generated."""
    text = prompt_text(tokenizer, prompt, prefill)
    own_begin = bool(getattr(tokenizer, "chat_template", None))
    ids: list[int] = tokenizer(text, add_special_tokens=not own_begin)["input_ids"]
    return ids


def render(tokenizer: Any, prompt: Sequence[Message], reply: str, prefill: str = "") -> Rendered:
    """The chat with its reply, each tokenized apart as it is when the reply is generated."""
    before = prompt_ids(tokenizer, prompt, prefill)
    # After a template's mark the reply begins as it stands; after words it begins with a space.
    begins_turn = bool(getattr(tokenizer, "chat_template", None)) and not prefill
    joined = reply if begins_turn else f" {reply.lstrip()}"
    after: list[int] = tokenizer(joined, add_special_tokens=False)["input_ids"]
    return Rendered((*before, *after, tokenizer.eos_token_id), len(before))
