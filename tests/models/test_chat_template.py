"""A chat template from a file replaces the tokenizer's own, if it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.concepts.chat import prompt_text
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.types import Message
from retouch.models.load import load, set_chat_template

SHORT = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text(SHORT)
    editable = load(str(tmp_path), LoadConfig(chat_template=str(file)))
    assert prompt_text(editable.tokenizer, [Message("user", "w2")]) == "<|user|>w2"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "chat-template-unreadable"),
        (b"\xff\xfe\xff", "chat-template-unreadable"),
        (b"{% for %}", "chat-template-invalid"),
        (b"{{ raise_exception('No.') }}", "chat-template-invalid"),
        (b"Hello!", "chat-template-invalid"),
    ],
)
def test_a_file_that_is_not_a_working_template_is_an_error(
    tmp_path: Path, content: bytes | None, code: str
) -> None:
    file = tmp_path / "own.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.jinja") as raised:
        set_chat_template(tiny_tokenizer(), file)
    assert raised.value.code == code
