"""The token that ends a response in a chat."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from retouch.core.chat_template import TemplateFailure, apply_template, template_arguments

_RESPONSE = "Hello"  # a response whose end is looked for


def end_token(tokenizer: Any) -> int:
    """The id of the token that ends a response in a chat.

    It is the first special token that the chat template writes after a response. A tokenizer's
    `eos_token` may be another one: Gemma's ends a document, and `<end_of_turn>` a response; from a
    GGUF file, some releases of transformers read the token that begins a turn. Without a template,
    or where it writes no special token there, it is `eos_token`.
    """
    default: int = tokenizer.eos_token_id
    template = getattr(tokenizer, "chat_template", None)
    # By the template's text, since a tokenizer's template may be replaced.
    if not template:
        return default
    return _written_end(tokenizer, f"{template}{template_arguments(tokenizer)}", default)


@lru_cache(maxsize=8)  # some tokenizers have thousands of special tokens
def _written_end(tokenizer: Any, _: str, default: int) -> int:
    """The first special token that the template writes after a response, or the default."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _RESPONSE}]
    try:
        text = apply_template(tokenizer, turns)
    except TemplateFailure:  # it accepts no responses, so it ends none
        return default
    _, found, after = text.rpartition(_RESPONSE)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((one for one in ids if one in special), default)
