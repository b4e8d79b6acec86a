"""Chats as text and as token ids, with the position of the response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retouch.core.chat_template import TemplateFailure, apply_template
from retouch.core.end_token import end_token
from retouch.core.errors import ModelError
from retouch.core.thoughts import open_thought, without_opening
from retouch.core.types import Message

MAX_MARKER = 24  # characters at a response's beginning that may be the marker of a thought


@dataclass(frozen=True, slots=True)
class TokenizedChat:
    """A tokenized chat with its response.

    Attributes:
        ids: token ids of the prompt, the prefill and the response.
        start: the first position of the response; `ids[start:]` ends with the end token, unless
            the response was cut. The state at `start - 1` predicts the first token of the response.
        prefill: the number of tokens before `start` that are a prefill from which the response
            departs.
    """

    ids: tuple[int, ...]
    start: int
    prefill: int = 0


def prompt_text(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> str:
    """Format a chat up to the position where the response begins, or continues its prefill.

    A tokenizer without a chat template gets a plain format: `User: ...`, `Assistant:`. Where a
    template refuses a system turn or omits it, the turn is prepended to the first user turn.
    Without turns it is running text.

    Raises:
        ModelError: the template refuses the turns.
    """
    if not prompt:
        return prefill
    if getattr(tokenizer, "chat_template", None):
        return f"{_apply_template(tokenizer, prompt)}{prefill}"
    plain = "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
    return f"{plain}\nAssistant:{' ' if prefill else ''}{prefill}"


def _apply_template(tokenizer: Any, prompt: Sequence[Message]) -> str:
    """Apply the chat template to the first form of the turns that it writes completely."""
    incomplete, refusal = "", ""
    for turns in _forms(prompt):
        try:
            text = apply_template(tokenizer, turns, add_generation_prompt=True)
        except TemplateFailure as error:
            refusal = refusal or str(error)
            continue
        if all(turn.content.strip() in text for turn in prompt):
            return text
        incomplete = incomplete or text
    if incomplete:  # some templates omit the reasoning of earlier responses on purpose
        return incomplete
    raise ModelError(
        f"The chat template refuses these turns ({', '.join(t.role for t in prompt)}): {refusal}.",
        "Set `chat_template` to a template that accepts them.",
        code="chat-template",
    )


def _forms(prompt: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns as templates accept them: as text or in parts, with or without a system turn."""
    forms = [prompt]
    if [turn.role for turn in prompt[:2]] == ["system", "user"]:
        first = Message("user", f"{prompt[0].content}\n\n{prompt[1].content}")
        forms.append([first, *prompt[2:]])
    for turns in forms:
        yield [{"role": turn.role, "content": turn.content} for turn in turns]
        # Templates of vision-language models may expect a list of parts.
        yield [
            {"role": turn.role, "content": [{"type": "text", "text": turn.content}]}
            for turn in turns
        ]


def prompt_ids(tokenizer: Any, prompt: Sequence[Message], prefill: str = "") -> list[int]:
    """The token ids that a response is generated after.

    Raises:
        ModelError: the chat template refuses the turns.
    """
    if not prompt:
        return [*_first_token(tokenizer), *_text_ids(tokenizer, prefill)]
    text = prompt_text(tokenizer, prompt, prefill)
    # A chat template writes the special tokens itself.
    plain = not getattr(tokenizer, "chat_template", None)
    ids: list[int] = tokenizer(text, add_special_tokens=plain)["input_ids"]
    return ids


def tokenize_chat(
    tokenizer: Any,
    prompt: Sequence[Message],
    response: str,
    prefill: str = "",
    *,
    truncated: bool = False,
) -> TokenizedChat:
    """Tokenize a chat with its response.

    Prompt and response are tokenized separately, as when the response is generated. A truncated
    response gets no end token (`end_token`), unless it is empty; running text has no end. The
    marker of a thought at the response's beginning is left out where the template writes it.

    Raises:
        ModelError: the chat template refuses the turns.
    """
    if prompt and (marker := open_thought(response[:MAX_MARKER])):
        marker = marker if prompt_text(tokenizer, prompt).rstrip().endswith(marker) else ""
        response = without_opening(response, marker)
    before = prompt_ids(tokenizer, prompt, prefill)
    # After a template's marker the response follows directly; after text, behind a space.
    after_marker = bool(not prompt or getattr(tokenizer, "chat_template", None)) and not prefill
    after = _text_ids(tokenizer, response if after_marker else f" {response.lstrip()}")
    end = () if (truncated or not prompt) and after else (end_token(tokenizer),)
    return TokenizedChat((*before, *after, *end), max(1, len(before)))


def tokenize_text(tokenizer: Any, text: str) -> TokenizedChat:
    """Tokenize a text that stands alone, after the tokenizer's first token, as lm-eval does.

    The first token is that of the beginning, else that of the end; without either, the text's own
    first token is not scored.
    """
    return TokenizedChat((*_first_token(tokenizer), *_text_ids(tokenizer, text)), 1)


def _first_token(tokenizer: Any) -> list[int]:
    """The token that running text begins with, if any."""
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next(([one] for one in special if one is not None), [])


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
