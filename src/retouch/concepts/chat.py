"""Chats as token ids, with the response's place in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from retouch.core.errors import ModelError
from retouch.core.types import Message


@dataclass(frozen=True, slots=True)
class TokenizedChat:
    """A tokenized chat with its response.

    Attributes:
        ids: token ids of prompt, forced beginning and response.
        start: the first position of the response; `ids[start:]` ends with the end of the turn. The
            state at `start - 1` is the one in which the response is decided.
    """

    ids: tuple[int, ...]
    start: int


def prompt_text(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> str:
    """The chat up to where the response begins, or goes on after a forced beginning.

    A tokenizer without a chat template gets the plain fallback: `User: ...`, `Assistant:`. Where a
    template refuses a system turn, or leaves it out, it is put before the first user turn's words.

    Raises:
        ModelError: the template refuses the turns.
    """
    if getattr(tokenizer, "chat_template", None):
        return f"{_templated(tokenizer, prompt)}{prefill}"
    plain = "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
    return f"{plain}\nAssistant:{' ' if prefill else ''}{prefill}"


def _templated(tokenizer: Any, prompt: Sequence[Message]) -> str:
    """The turns through the chat template, in the first way in which it writes all their words."""
    written, refusal = "", ""
    for turns in _ways(prompt):
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            refusal = refusal or str(error)
            continue
        if all(turn.content.strip() in text for turn in prompt):
            return str(text)
        written = written or str(text)
    if written:  # as the template will have it: some leave out what an earlier response thought
        return written
    raise ModelError(
        f"The chat template refuses these turns ({', '.join(t.role for t in prompt)}): {refusal}.",
        "Give one that takes them with --chat-template.",
    )


def _ways(prompt: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns as templates take them: words as text or in parts, a system turn or none."""
    folded = _folded(prompt)
    for turns in (prompt, folded) if len(folded) < len(prompt) else (prompt,):
        yield [{"role": turn.role, "content": turn.content} for turn in turns]
        # Templates of models that see may look for words among the parts of a turn.
        yield [
            {"role": turn.role, "content": [{"type": "text", "text": turn.content}]}
            for turn in turns
        ]


def _folded(prompt: Sequence[Message]) -> list[Message]:
    """The turns with a system turn's words at the beginning of the first user turn."""
    if len(prompt) < 2 or prompt[0].role != "system" or prompt[1].role != "user":
        return list(prompt)
    first = Message("user", f"{prompt[0].content}\n\n{prompt[1].content}")
    return [first, *prompt[2:]]


def prompt_ids(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> list[int]:
    """The token ids after which the response is to be generated."""
    text = prompt_text(tokenizer, prompt, prefill)
    own_begin = bool(getattr(tokenizer, "chat_template", None))
    ids: list[int] = tokenizer(text, add_special_tokens=not own_begin)["input_ids"]
    return ids


def tokenize_chat(
    tokenizer: Any, prompt: Sequence[Message], response: str, prefill: str = ""
) -> TokenizedChat:
    """The chat with its response, each tokenized apart as it is when the response is generated."""
    before = prompt_ids(tokenizer, prompt, prefill)
    # After a template's mark the response begins as it stands; after words it begins with a space.
    begins_turn = bool(getattr(tokenizer, "chat_template", None)) and not prefill
    joined = response if begins_turn else f" {response.lstrip()}"
    after: list[int] = tokenizer(joined, add_special_tokens=False)["input_ids"]
    return TokenizedChat((*before, *after, tokenizer.eos_token_id), len(before))
