"""Convert rows of a file or a dataset to examples; errors name file, line and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from retouch.concepts.concept import Example
from retouch.concepts.location import SourceLocation, describe_type
from retouch.concepts.normalization import is_blank
from retouch.core.errors import choices, code_list
from retouch.core.types import SPLITS, Message, Split

COLUMNS = (
    "prompt",
    "label",
    "response",
    "pair",
    "prefill",
    "accept",
    "choices",
    "group",
    "entity",
    "request",
)
CUSTOM_COLUMNS = (*COLUMNS, "target_response", "split")
CUSTOM_LABELS = ("positive", "negative", "retain")
MAX_CHARACTERS = 1_000_000  # of a text: more than the longest contexts, and than memory allows
_TEXT_COLUMNS = tuple(
    name for name in CUSTOM_COLUMNS if name not in ("prompt", "accept", "choices")
)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class LocatedExample:
    """An example with its location, and what its row says beside it, if anything.

    Attributes:
        split: the split that the example belongs to.
        target_response: the response to the example's prompt that an edit moves it towards.
    """

    example: Example
    location: SourceLocation
    split: Split | None = None
    target_response: str | None = None


def parse_row(
    location: SourceLocation, values: Mapping[str, Any], *, custom: bool = False
) -> LocatedExample:
    """Convert the values of a row to an example; a blank text is an empty one.

    Args:
        location: the row's.
        values: by column.
        custom: whether it is a user's row, with the labels `positive`, `negative` and `retain` and
            the optional columns `target_response` and `split`. A pack has its own labels, and a
            file for each split.

    Raises:
        DataError: a value is wrong; names the location and the column.
    """
    text = dict.fromkeys(_TEXT_COLUMNS, "")
    for column in _TEXT_COLUMNS:
        if column in values:
            text[column] = _text(location, column, values[column])
    label, split = text["label"].strip(), text["split"].strip()
    if not label:
        hint = f"Write one of {code_list(CUSTOM_LABELS)}." if custom else "Give every row a label."
        raise location.error("label-missing", "the label is empty.", hint, "label")
    if custom:
        _check_word(location, "label", label, CUSTOM_LABELS)
    if split:
        _check_word(location, "split", split, SPLITS)
    example = Example(
        prompt=_prompt(location, values.get("prompt")),
        label=label,
        response=text["response"] or None,
        pair=text["pair"].strip() or None,
        prefill=text["prefill"],
        accept=_accept(location, values.get("accept")),
        choices=_choices(location, values.get("choices")),
        group=text["group"].strip(),
        entity=text["entity"].strip(),
        request=text["request"],
        location=location,
    )
    if not (example.prompt or example.prefill or example.response):
        hint = "Begin running text with `prefill`, or write the prompt."
        raise location.error("prompt-empty", "the prompt has no turns.", hint, "prompt")
    target = text["target_response"] or None
    if target and label != "negative":
        message = f"a row labelled `{label}` has a target response."
        hint = "Write it as `response`: `target_response` is for `negative` rows."
        raise location.error("target-response", message, hint, "target_response")
    return LocatedExample(example, location, cast(Split, split) if split else None, target)


def _check_word(
    location: SourceLocation, noun: str, word: str, known: Sequence[str], column: str = ""
) -> None:
    if word not in known:
        hint = choices(word, f"{noun}s", known)
        raise location.error(f"{noun}-unknown", f"unknown {noun} `{word}`.", hint, column or noun)


def _text(location: SourceLocation, column: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        hint = "Write a text in quotation marks."
        if isinstance(value, int | float) and not isinstance(value, bool):
            hint = f'Put it in quotation marks: "{value}".'
        message = f"this is {describe_type(value)}, not a text."
        raise location.error("value-type", message, hint, column)
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON escapes can name half of a surrogate pair; no tokenizer or file takes it.
        message = "the text contains half of a surrogate pair, which is not a character."
        hint = "Write the character itself."
        raise location.error("surrogate", message, hint, column) from None
    if len(value) > MAX_CHARACTERS:
        message = f"the text has {len(value):,} characters, more than {MAX_CHARACTERS:,}."
        raise location.error("text-too-long", message, "Shorten it, or remove the row.", column)
    return "" if is_blank(value) else value


def _texts(location: SourceLocation, column: str, value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_text(location, column, one) for one in values)


def _prompt(location: SourceLocation, value: Any) -> tuple[Message, ...]:
    turns = value if isinstance(value, list | tuple) else [{"role": "user", "content": value}]
    messages = tuple(_message(location, turn) for turn in turns)
    if not messages:
        return ()  # running text
    if messages[-1].role != "user":
        message = f"the prompt ends with a turn of the {messages[-1].role}, not of the user."
        hint = "Move a response to `response`, and the beginning of one to `prefill`."
        raise location.error("prompt-last-turn", message, hint, "prompt")
    return messages


def _message(location: SourceLocation, turn: Any) -> Message:
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
        message = "a turn of the prompt is not an object with the keys `role` and `content`."
        hint = 'Write turns as {"role": "user", "content": "..."}.'
        raise location.error("prompt-turn", message, hint, "prompt")
    role, content = (_text(location, "prompt", turn[key]) for key in ("role", "content"))
    _check_word(location, "role", role, ROLES, "prompt")
    if not content:
        hint = "Write one, or remove the row."
        raise location.error("prompt-empty", "the prompt is empty.", hint, "prompt")
    return Message(cast(Any, role), content)


def _accept(location: SourceLocation, value: Any) -> tuple[str, ...]:
    accept = _texts(location, "accept", value)
    if not all(accept):
        message = "a phrase is empty; every response would contain it."
        raise location.error("accept-empty", message, "Remove it.", "accept")
    return accept


def _choices(location: SourceLocation, value: Any) -> tuple[str, ...]:
    found = _texts(location, "choices", value)
    if found and (len(set(found)) != 2 or not all(found)):
        message = f"two choices are compared, got {code_list(found) or 'none'}."
        raise location.error("choices-invalid", message, "Write two different texts.", "choices")
    return found
