"""What a chat template gets besides the turns: its variables, and the time that it reads.

Both are attributes of the tokenizer, so that they are the same wherever its template is applied:
`chat_template_kwargs` are variables such as `enable_thinking`; `chat_template_time` replaces the
clock (`strftime_now`), so that equal turns get equal tokens on another day.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from retouch.core.time_limit import time_limit

MAX_SECONDS = 3  # for one use of a template; a usual one takes a millisecond
MAX_TEXT = 10_000_000  # characters that a template may write

_CLOCK = "strftime_now"
_DIRECTIVES = "aAwdbBmyYHIpMSfjUWGuV"
_UNPADDED = "dmHIMSjy"  # `%-d`, on systems that have it


class TemplateFailure(Exception):
    """A chat template does not write the turns; the text says why."""


def apply_template(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
) -> str:
    """The text that a tokenizer's chat template writes, with the variables and the time set.

    Args:
        tokenizer: a tokenizer with a chat template.
        turns: the turns, with `role` and `content`.
        add_generation_prompt: whether the beginning of a response follows the turns.

    Raises:
        TemplateFailure: the template refuses the turns, fails, does not end or writes too much.
    """
    try:
        with time_limit(MAX_SECONDS):
            text = tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **template_arguments(tokenizer),
            )
    except Exception as error:  # a template is a program from elsewhere: it may fail in any way
        raise TemplateFailure(f"{error!s:.300}" or type(error).__name__) from None
    if len(text) > MAX_TEXT:
        raise TemplateFailure(f"it writes more than {MAX_TEXT:,} characters")
    return str(text)


def set_template_settings(
    tokenizer: Any, variables: Mapping[str, Any] | None, time: str | None = None
) -> None:
    """Set the variables of a tokenizer's chat template, and the time that it reads.

    Args:
        tokenizer: the tokenizer.
        variables: values by name, which JSON can represent; None for none.
        time: a date or a time in ISO 8601 (default: when this process first applied a template).
    """
    tokenizer.chat_template_kwargs = dict(variables or {})
    tokenizer.chat_template_time = time


def template_variables(tokenizer: Any) -> dict[str, Any]:
    """The variables that are set for a tokenizer's chat template."""
    return dict(getattr(tokenizer, "chat_template_kwargs", None) or {})


def template_time(tokenizer: Any) -> str:
    """The time that a tokenizer's chat template reads, in ISO 8601."""
    return str(getattr(tokenizer, "chat_template_time", None) or _process_time())


def reads_clock(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template reads the clock."""
    return _CLOCK in str(getattr(tokenizer, "chat_template", None) or "")


def template_arguments(tokenizer: Any) -> dict[str, Any]:
    """The further arguments of `apply_chat_template`: variables, and a template of a fixed time."""
    arguments = template_variables(tokenizer)
    if reads_clock(tokenizer):
        template = tokenizer.chat_template
        text = template if isinstance(template, str) else tokenizer.get_chat_template()
        arguments["chat_template"] = f"{_fixed_clock(template_time(tokenizer))}\n{text}"
    return arguments


@cache
def _process_time() -> str:
    return datetime.now().isoformat(timespec="seconds")


@cache
def _fixed_clock(time: str) -> str:
    """A Jinja macro in place of transformers' function, which reads the clock.

    transformers passes no functions to templates. The line break after the macro is not written:
    its templates are compiled with `trim_blocks`.
    """
    moment = datetime.fromisoformat(time)
    values = {f"%{one}": moment.strftime(f"%{one}") for one in _DIRECTIVES}
    values |= {f"%-{one}": values[f"%{one}"].lstrip("0") or "0" for one in _UNPADDED}
    values["%e"] = values["%-d"].rjust(2)
    values["%F"] = moment.strftime("%Y-%m-%d")
    values["%T"] = moment.strftime("%H:%M:%S")
    values |= {f"%{one}": moment.strftime(f"%{one}") for one in "cxX"}
    values |= {"%z": moment.strftime("%z"), "%Z": moment.strftime("%Z"), "%%": "%"}
    return (
        f"{{%- macro {_CLOCK}(format) -%}}{{%- set ns = namespace(text=format) -%}}"
        f"{{%- for name, value in {json.dumps(values)}.items() -%}}"
        "{%- set ns.text = ns.text.replace(name, value) -%}{%- endfor -%}"
        "{{- ns.text -}}{%- endmacro %}"
    )
