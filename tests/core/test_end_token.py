"""The token that ends a response is the chat template's, where it has one."""

from __future__ import annotations

import pytest

from helpers.tiny_models import tiny_tokenizer
from retouch.concepts.chat import tokenize_chat
from retouch.core.end_token import end_token
from retouch.core.types import Message

WITHOUT_ENDS = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
WITHOUT_RESPONSES = "{{ messages[0]['content'] }}"
REFUSES_RESPONSES = "{{ messages[1:] and raise_exception('one turn only') }}"


def test_it_is_the_token_that_the_template_writes_after_a_response() -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    assert end_token(tokenizer) == end
    tokenizer.eos_token = "<|begin|>"  # as some releases of transformers read a GGUF file
    assert end_token(tokenizer) == end != tokenizer.eos_token_id
    assert tokenize_chat(tokenizer, [Message("user", "w1")], "w3").ids[-1] == end


@pytest.mark.parametrize("template", [None, WITHOUT_ENDS, WITHOUT_RESPONSES, REFUSES_RESPONSES])
def test_it_is_the_tokenizers_where_the_template_writes_none(template: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert end_token(tokenizer) == tokenizer.eos_token_id
