"""Read a chat template from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retouch.core.errors import ConfigError

PROBE = "a question"  # the user turn that a template is tried with


def set_chat_template(tokenizer: Any, path: Path) -> None:
    """Replace the tokenizer's chat template by the one in a file, if it works.

    Raises:
        ConfigError: the file cannot be read, the template fails, or its output lacks the content
            of the user's turn.
    """
    from jinja2 import TemplateError

    try:
        template = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The chat template {path} cannot be read: {problem}.",
            "Set `chat_template` to a readable UTF-8 file.",
            code="chat-template-unreadable",
        ) from None
    try:
        tokenizer.chat_template = template
        chat = [{"role": "user", "content": PROBE}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The chat template {path} fails: {error}.",
            "Use a Jinja template in the format of transformers.",
            code="chat-template-invalid",
        ) from None
    if PROBE not in text:
        raise ConfigError(
            f"The output of the chat template {path} lacks the content of the user's turn.",
            "Iterate over `messages`, as the templates of tokenizers do.",
            code="chat-template-invalid",
        )
