"""The token that ends a response in a chat."""

from __future__ import annotations

from typing import Any

_RESPONSE = "Hello"  # a response whose end is looked for


def end_token(tokenizer: Any) -> int:
    """The id of the token that ends a response in a chat.

    It is the first special token that the chat template writes after a response. A tokenizer's
    `eos_token` may be another one: Gemma's ends a document, and `<end_of_turn>` a response; from a
    GGUF file, some releases of transformers read the token that begins a turn. Without a template,
    or where it writes no special token there, it is `eos_token`.
    """
    from jinja2 import TemplateError  # here, since `retouch --help` needs none of it

    default: int = tokenizer.eos_token_id
    if not getattr(tokenizer, "chat_template", None):
        return default
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _RESPONSE}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, TypeError):  # it accepts no responses, so it ends none
        return default
    _, found, after = text.rpartition(_RESPONSE)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((one for one in ids if one in special), default)
