"""A chat template from a file, in place of the tokenizer's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retouch.core.errors import ConfigError


def set_chat_template(tokenizer: Any, path: Path) -> None:
    """Give the tokenizer the chat template in a file, once it is seen to work.

    Raises:
        ConfigError: it cannot be read, does not work, or leaves out what the user says.
    """
    from jinja2 import TemplateError

    try:
        template = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The chat template {path} cannot be read: {why}.", "Give another --chat-template."
        ) from None
    said = "a question"
    try:
        tokenizer.chat_template = template
        turns = [{"role": "user", "content": said}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The chat template {path} does not work: {error}.", "It is to be a Jinja template."
        ) from None
    if said not in text:
        raise ConfigError(
            f"The chat template {path} does not write what the user says.",
            "It is to go through `messages`, as those of tokenizers do.",
        )
