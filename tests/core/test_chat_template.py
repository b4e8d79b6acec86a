"""Template variables and a fixed time are applied wherever the chat template is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from helpers.char_tokenizer import char_tokenizer
from retouch.concepts.chat import prompt_text
from retouch.core import chat_template
from retouch.core.chat_template import (
    TemplateFailure,
    apply_template,
    reads_clock,
    set_template_settings,
    template_time,
)
from retouch.core.config import LoadConfig
from retouch.core.config_file import dump_yaml, load_yaml, resolve
from retouch.core.end_token import end_token
from retouch.core.errors import ConfigError, ModelError
from retouch.core.types import Message

USER = [Message("user", "Hi")]
THINKING = (
    "{% for m in messages %}{{ m['content'] }}{{ '<pad>' if enable_thinking else '<end>' }}"
    "{% endfor %}{{ '<think>' if enable_thinking else '' }}"
)
LOOP = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
CLOCK = (
    "\n  {% set day = strftime_now(form) %}{{ day }}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)


def tokenizer_with(template: str) -> Any:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_variables_reach_the_template_and_the_end_token() -> None:
    tokenizer = tokenizer_with(THINKING)
    assert prompt_text(tokenizer, USER) == "Hi<end>"
    before = end_token(tokenizer)
    set_template_settings(tokenizer, {"enable_thinking": True})
    assert prompt_text(tokenizer, USER) == "Hi<pad><think>"
    assert end_token(tokenizer) == tokenizer.pad_token_id != before


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("%d %b %Y", "05 Feb 2024"),
        ("%Y-%m-%d", "2024-02-05"),
        ("%B %-d, %Y, %H:%M", "February 5, 2024, 09:30"),
    ],
)
def test_a_template_reads_the_given_time(form: str, expected: str) -> None:
    tokenizer = tokenizer_with(CLOCK.replace("form", f"'{form}'"))
    set_template_settings(tokenizer, {}, "2024-02-05T09:30:00")
    # With the line break and without the indentation, as transformers writes the template.
    assert prompt_text(tokenizer, USER) == f"\n{expected}Hi"
    # The template itself is unchanged: elsewhere it reads the clock.
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert plain.startswith("\n")
    assert f"{datetime.now():%Y}" in plain


def test_the_time_is_the_same_for_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_with(CLOCK.replace("form", "'%Y-%m-%d'"))
    first = prompt_text(tokenizer, USER)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2099, 1, 1)

    monkeypatch.setattr(chat_template, "datetime", Tomorrow)
    assert prompt_text(tokenizer, USER) == first
    assert template_time(tokenizer)[:10] in first
    assert reads_clock(tokenizer)
    assert not reads_clock(tokenizer_with(THINKING))


def test_the_configuration_records_both() -> None:
    values = {
        "chat_template_kwargs": {"enable_thinking": False},
        "chat_template_time": "2024-02-05",
    }
    config = resolve({"load": values})
    assert resolve(load_yaml(dump_yaml(config))) == config
    assert config.load.chat_template_kwargs == {"enable_thinking": False}
    assert LoadConfig().chat_template_kwargs is None


@pytest.mark.parametrize(
    "values",
    [
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"strftime_now": "x"}},
        {"chat_template_kwargs": {"not a name": 1}},
        {"chat_template_time": "yesterday"},
    ],
)
def test_other_names_and_times_are_errors(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve({"load": values})
    assert raised.value.code == "config-invalid"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion|takes longer"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ raise_exception('no') }}", "no"),
        ("{% for", "end of template"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        (LOOP, "takes longer"),
        ("{{ 9**(9**9) }}", "takes longer"),
        ("{{ 'a' * 2000 }}", "more than 1,000 characters"),
    ],
)
def test_a_template_that_fails_says_how(
    template: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "MAX_TEXT", 1000)
    turns = [{"role": "user", "content": "Hi"}]
    with pytest.raises(TemplateFailure, match=reason):
        apply_template(tokenizer_with(template), turns)
    with pytest.raises(ModelError, match=reason):
        prompt_text(tokenizer_with(template), USER)
    assert end_token(tokenizer_with(template)) is not None
