"""Chats are formatted by the tokenizer's template, and tokenized as in generation."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.tiny_models import tiny_tokenizer
from retouch.concepts.chat import (
    TokenizedChat,
    prompt_ids,
    prompt_text,
    tokenize_chat,
    tokenize_text,
)
from retouch.core.errors import ModelError
from retouch.core.types import Message
from retouch.models.load import load

WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] | trim }}{% endfor %}"
)
OMITS_SYSTEM = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
)
PARTS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}"
)
PROMPT = [Message("system", "w1"), Message("user", "w2")]


def tokenizer_with(template: str | None) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_tokenizer_without_a_template_gets_the_plain_format() -> None:
    tokenizer = tokenizer_with(None)
    assert prompt_text(tokenizer, PROMPT) == "System: w1\nUser: w2\nAssistant:"
    assert prompt_text(tokenizer, PROMPT, "Sure") == "System: w1\nUser: w2\nAssistant: Sure"


def test_a_response_is_tokenized_as_in_generation() -> None:
    tokenizer = load("pocket").tokenizer
    prompt = [Message("user", "What is the capital of France?")]
    whole = tokenize_chat(tokenizer, prompt, "Sure, here is Paris.")
    prefilled = tokenize_chat(tokenizer, prompt, "here is Paris.", prefill="Sure,")
    assert whole.ids == prefilled.ids
    assert whole.start == len(prompt_ids(tokenizer, prompt))
    assert prefilled.start == len(prompt_ids(tokenizer, prompt, "Sure,")) > whole.start
    assert whole.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, OMITS_SYSTEM])
def test_a_system_turn_is_merged_where_the_template_has_none(template: str) -> None:
    tokenizer = tokenizer_with(template)
    user, response, last = Message("user", "w2"), Message("assistant", "w3"), Message("user", "w4")
    prompt = [Message("system", " w1"), user, response, last]
    expected = "<|user|>w1\n\nw2<|assistant|>w3<|user|>w4"
    assert prompt_text(tokenizer, prompt).replace("> ", ">") == expected
    assert prompt_text(tokenizer, [user]) == "<|user|>w2"
    assert prompt_text(tokenizer, prompt, "Sure").endswith("w4Sure")


def test_a_template_that_expects_parts_gets_parts() -> None:
    assert prompt_text(tokenizer_with(PARTS), PROMPT) == "<|system|>w1<|user|>w2"


def test_a_template_with_a_system_turn_writes_it() -> None:
    expected = "<|begin|><|system|>w1<|end|><|user|>w2<|end|><|assistant|>"
    assert prompt_text(tiny_tokenizer(), PROMPT) == expected


def test_a_template_that_refuses_the_turns_is_an_error_with_its_reason() -> None:
    tokenizer = tokenizer_with("{{ raise_exception('Only poems') }}")
    with pytest.raises(ModelError, match=r"\(user\): Only poems") as raised:
        prompt_text(tokenizer, [Message("user", "w2")])
    assert raised.value.code == "chat-template"
    assert raised.value.hint


@pytest.mark.parametrize(
    ("begin", "end", "first"),
    [("<|begin|>", "<|end|>", 1), ("<|begin|>", None, 1), (None, "<|end|>", 2), (None, None, None)],
)
def test_a_text_is_scored_after_the_first_token_of_the_tokenizer(
    begin: str | None, end: str | None, first: int | None
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = begin, end
    ids = tokenizer("w1 w2 w3", add_special_tokens=False)["input_ids"]
    text = tokenize_text(tokenizer, "w1 w2 w3")
    assert text.ids == ((*ids,) if first is None else (first, *ids))
    assert text.start == 1  # without a first token, the text's own is not scored


def test_a_text_has_neither_a_template_nor_an_end() -> None:
    tokenizer = load("pocket").tokenizer
    text = tokenize_text(tokenizer, "A hat is a hat.")
    assert tokenizer.decode(text.ids[text.start :]) == "A hat is a hat."
    assert tokenize_text(tokenizer, "").ids == text.ids[: text.start]


@pytest.mark.parametrize("template", [None, WITHOUT_SYSTEM])
def test_without_turns_it_is_running_text(template: str | None) -> None:
    tokenizer = tokenizer_with(template)
    whole = tokenize_text(tokenizer, "w1 w2 w3")
    chat = tokenize_chat(tokenizer, (), "w3", prefill="w1 w2")
    assert chat == TokenizedChat(whole.ids, len(whole.ids) - 1)
    assert list(chat.ids[: chat.start]) == prompt_ids(tokenizer, (), "w1 w2")
    assert prompt_text(tokenizer, (), "w1 w2") == "w1 w2"
    assert tokenize_chat(tokenizer, (), "w1 w2 w3") == whole
