"""The published formats of training files, each converted to the columns of a concept file.

A row without a label is a demonstration: its response is the one that its prompt should get. With a
label, the response is that of the labelled example.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from retouch.concepts.location import SourceLocation, describe_type
from retouch.core.errors import choices, code_list

Values = dict[str, Any]
_Turns = list[dict[str, str]]

# The roles of ShareGPT, of its descendants and of OpenAI, by the names of Retouch.
ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Format:
    """A format of training files.

    Attributes:
        name: as its publishers call it.
        required: the columns that a row is recognised by.
        optional: further columns that are read.
        mapping: where their content goes, for the user.
        convert: the values of a row by the columns of a concept file.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    mapping: str
    convert: Callable[[SourceLocation, Values], Values]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return self.required + self.optional


def find_format(names: Collection[str]) -> Format | None:
    """The format that a row's columns are of; None for those of a concept file, or unknown ones."""
    for one in FORMATS:
        # Of a concept file, these would be further columns.
        own = one.name in _CHATS and {"prompt", "label"} <= set(names)
        if not own and set(one.required) <= set(names):
            return one
    return None


def _preference(location: SourceLocation, values: Values) -> Values:
    """A contrast pair: one prompt, and the responses to learn and to unlearn."""
    texts = [isinstance(values[name], str) for name in ("chosen", "rejected")]
    if all(texts):
        if values.get("prompt") in (None, ""):
            message = "the column `prompt` is missing or empty, and the responses are texts."
            raise location.error("column-missing", message, "Give the prompt of both responses.")
        prompt, chosen, rejected = values["prompt"], values["chosen"], values["rejected"]
    elif any(texts):
        message = "of `chosen` and `rejected` one is a text, and the other is none."
        raise location.error("value-type", message, "Write both as texts, or as lists of turns.")
    else:
        both = [_turns(location, name, values[name]) for name in ("chosen", "rejected")]
        turns = _prompt_turns(location, values.get("prompt"), both)
        chosen, rejected = (
            _completion(location, name, one[len(turns) :] if one[: len(turns)] == turns else one)
            for name, one in zip(("chosen", "rejected"), both, strict=True)
        )
        prompt = turns
    label = {"label": values["label"]} if values.get("label") not in (None, "") else {}
    return {
        "label": "negative",
        **label,
        "prompt": _with_system(values, prompt),
        "response": rejected,
        "target_response": chosen,
    }


def _prompt_turns(location: SourceLocation, prompt: Any, both: list[_Turns]) -> _Turns:
    """The turns of a prompt; where there is none, the turns that both responses begin with."""
    if isinstance(prompt, str) and prompt:
        return [{"role": "user", "content": prompt}]
    if prompt not in (None, "", []):
        return _turns(location, "prompt", prompt)
    shared: _Turns = []
    for one, other in zip(both[0][:-1], both[1][:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def _prompt_completion(location: SourceLocation, values: Values) -> Values:
    """A prompt and one response to it."""
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list | tuple):
        prompt = _turns(location, "prompt", prompt)
    if completion is not None and not isinstance(completion, str):
        completion = _completion(location, "completion", _turns(location, "completion", completion))
    return _answered(values, prompt, completion)


def _messages(location: SourceLocation, values: Values) -> Values:
    return _chat(location, values, "messages")


def _conversations(location: SourceLocation, values: Values) -> Values:
    return _chat(location, values, "conversations")


def _chat(location: SourceLocation, values: Values, column: str) -> Values:
    """A chat, whose last turn is the response if it is the assistant's."""
    turns, response = _turns(location, column, values[column]), None
    if turns and turns[-1]["role"] == "assistant":
        response = turns.pop()["content"]
    if not turns:
        message = "the chat has no turn before the response."
        raise location.error("prompt-empty", message, "Add the user's turn.", column)
    return _answered(values, turns, response)


def _instruction(location: SourceLocation, values: Values) -> Values:
    """An instruction, the input that it is about, and the output."""
    parts = [values["instruction"], values.get("input")]
    for name, part in zip(("instruction", "input"), parts, strict=True):
        if not isinstance(part, str | None):
            message = f"this is {describe_type(part)}, not a text."
            raise location.error("value-type", message, "Write a text in quotation marks.", name)
    prompt = "\n\n".join(part for part in parts if part and part.strip())
    return _answered(values, prompt, values["output"])


def _answered(values: Values, prompt: Any, response: Any) -> Values:
    """An example with its response: the one to learn, where no label says whose it is."""
    given = values.get("label") not in (None, "")
    column = "response" if given else "target_response"
    label = values["label"] if given else "negative"
    return {"label": label, "prompt": _with_system(values, prompt), column: response}


def _with_system(values: Values, prompt: Any) -> Any:
    """The prompt after the system turn of the column `system`, unless it has one itself."""
    system = values.get("system")
    if not isinstance(system, str) or not system.strip():
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    first = {"role": "system", "content": system}
    return turns if turns and turns[0].get("role") == "system" else [first, *turns]


def _completion(location: SourceLocation, column: str, turns: _Turns) -> str:
    """The text of a response that is given as a list of turns."""
    if [turn["role"] for turn in turns] != ["assistant"]:
        roles = ", ".join(turn["role"] for turn in turns) or "none"
        message = f"after the prompt there must be one turn of the assistant, got {roles}."
        raise location.error("completion-turns", message, "Cut the chat at its response.", column)
    return turns[0]["content"]


def _turns(location: SourceLocation, column: str, value: Any) -> _Turns:
    """The turns of a chat with the keys `role` and `content`, or `from` and `value`."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        message = f"this is {describe_type(value)}, not a list of turns."
        raise location.error("value-type", message, _TURNS_HINT, column)
    return [_turn(location, column, turn) for turn in value]


def _turn(location: SourceLocation, column: str, turn: Any) -> dict[str, str]:
    keys = ("role", "content")
    if isinstance(turn, dict) and turn.get("role") is None:
        keys = ("from", "value")
    if not isinstance(turn, dict) or keys[0] not in turn or keys[1] not in turn:
        message = "a turn is not an object with the keys `role` and `content`."
        raise location.error("prompt-turn", message, _TURNS_HINT, column)
    role, content = turn[keys[0]], turn[keys[1]]
    if role not in ROLE_OF:
        hint = choices(str(role), "roles", ROLE_OF)
        raise location.error("role-unknown", f"unknown role `{role}`.", hint, column)
    if isinstance(content, list | tuple):
        content = _joined_parts(location, column, content)
    if not isinstance(content, str):
        message = f"the content of a turn is {describe_type(content)}, not a text."
        hint = "Remove calls of tools, and rows with turns that have no text."
        raise location.error("value-type", message, hint, column)
    return {"role": ROLE_OF[role], "content": content}


def _joined_parts(location: SourceLocation, column: str, parts: Collection[Any]) -> str:
    """The text of a turn in parts, as OpenAI writes them."""
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        message = "a part of a turn is no text."
        hint = "Images and sound are not supported: remove the row."
        raise location.error("value-type", message, hint, column)
    return "".join(part["text"] for part in parts)


_TURNS_HINT = 'Write turns as [{"role": "user", "content": "..."}, ...].'
_CHATS = ("OpenAI messages", "ShareGPT", "Alpaca")
_RESPONSE = "`target_response`, or the labelled example's `response`"

FORMATS = (
    Format(
        "TRL preference",
        ("chosen", "rejected"),
        ("prompt", "label", "system"),
        "`rejected` is the source's `response`, `chosen` its `target_response`",
        _preference,
    ),
    Format(
        "TRL prompt and completion (KTO with a label)",
        ("prompt", "completion"),
        ("label", "system"),
        f"`completion` is the {_RESPONSE}",
        _prompt_completion,
    ),
    Format(
        "OpenAI messages",
        ("messages",),
        ("label", "system"),
        f"in `messages`, the last turn of the assistant is the {_RESPONSE}, the turns before it "
        "are the `prompt`",
        _messages,
    ),
    Format(
        "ShareGPT",
        ("conversations",),
        ("label", "system"),
        f"in `conversations`, the last turn of the assistant is the {_RESPONSE}, the turns before "
        "it are the `prompt`",
        _conversations,
    ),
    Format(
        "Alpaca",
        ("instruction", "output"),
        ("input", "label", "system"),
        f"`instruction` and `input` are the `prompt`, `output` is the {_RESPONSE}",
        _instruction,
    ),
)

FORMATS_TEXT = "; ".join(f"{code_list(one.required)} ({one.name})" for one in FORMATS)
