"""Convert rows of a file or a dataset to examples; errors name file, line and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args

from retouch.concepts.concept import Example
from retouch.concepts.readers import (
    SourceLocation,
    code_list,
    describe_type,
    did_you_mean,
    read_table,
)
from retouch.core.types import SPLITS, Message, Split

COLUMNS = ("prompt", "label", "response", "pair", "prefill", "accept", "group", "entity")
CUSTOM_COLUMNS = (*COLUMNS, "split")
CUSTOM_LABELS = ("positive", "negative", "retain")

_Role = Literal["system", "user", "assistant"]
_ROLES: tuple[str, ...] = get_args(_Role)


@dataclass(frozen=True, slots=True)
class LocatedExample:
    """An example with its location, and the split that its row names, if any."""

    example: Example
    location: SourceLocation
    split: Split | None = None


def read_examples(file: Path | Traversable) -> tuple[Example, ...]:
    """Read a file of a pack, in file order.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """
    return tuple(one.example for one in read_located_examples(file))


def read_located_examples(
    file: Path | Traversable, *, custom: bool = False
) -> list[LocatedExample]:
    """Read a CSV, JSONL or Parquet file, in file order.

    Args:
        file: the file; its suffix determines the format.
        custom: whether it is a user's file, with the labels `positive`, `negative` and `retain` and
            an optional column `split`. A pack has its own labels, and a file for each split.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """
    examples = [
        parse_row(location, values, custom=custom)
        for location, values in read_table(file, CUSTOM_COLUMNS if custom else COLUMNS)
    ]
    check_consistent(examples)
    return examples


def parse_row(
    location: SourceLocation, values: dict[str, Any], *, custom: bool = False
) -> LocatedExample:
    """Convert the values of a row to an example.

    Raises:
        DataError: a value is wrong; names the location and the column.
    """
    label = _text(location, values, "label").strip()
    if not label:
        hint = f"Write one of {code_list(CUSTOM_LABELS)}." if custom else "Give every row a label."
        raise location.error("label-missing", "the label is empty.", hint, "`label`")
    if custom and label not in CUSTOM_LABELS:
        raise location.error(
            "label-unknown",
            f"unknown label `{label}`.",
            _choices(label, CUSTOM_LABELS, "labels"),
            "`label`",
        )
    example = Example(
        prompt=_prompt(location, values),
        label=label,
        response=_text(location, values, "response") or None,
        pair=_text(location, values, "pair").strip() or None,
        prefill=_text(location, values, "prefill"),
        accept=_accept(location, values.get("accept")),
        group=_text(location, values, "group").strip(),
        entity=_text(location, values, "entity").strip(),
    )
    return LocatedExample(example, location, _split(location, values))


def _choices(word: str, known: Sequence[str], plural: str) -> str:
    """A hint with the closest of the known words, and all of them."""
    return f"{did_you_mean(word, known)} The {plural} are {code_list(known)}.".strip()


def _text(location: SourceLocation, values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = "Write a text in quotation marks."
        if isinstance(value, int | float) and not isinstance(value, bool):
            hint = f'Put it in quotation marks: "{value}".'
        message = f"this is {describe_type(value)}, not a text."
        raise location.error("value-type", message, hint, f"`{key}`")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON escapes can name half of a surrogate pair; no tokenizer or file takes it.
        raise location.error(
            "surrogate",
            "the text contains half of a surrogate pair, which is not a character.",
            "Write the character itself.",
            f"`{key}`",
        ) from None
    return value


def _prompt(location: SourceLocation, values: dict[str, Any]) -> tuple[Message, ...]:
    turns = values.get("prompt")
    if not isinstance(turns, list | tuple):
        turns = [{"role": "user", "content": _text(location, values, "prompt")}]
    if not turns:
        turns = [{"role": "user", "content": ""}]
    messages = [_message(location, turn) for turn in turns]
    if messages[-1].role != "user":
        raise location.error(
            "prompt-last-turn",
            f"the prompt ends with a turn of the {messages[-1].role}, not of the user.",
            "Move a response to `response`, and the beginning of one to `prefill`.",
            "`prompt`",
        )
    return tuple(messages)


def _message(location: SourceLocation, turn: Any) -> Message:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise location.error(
            "prompt-turn",
            "a turn of the prompt is not an object with the keys `role` and `content`.",
            'Write turns as {"role": "user", "content": "..."}.',
            "`prompt`",
        )
    role = _text(location, turn, "role")
    if role not in _ROLES:
        raise location.error(
            "role-unknown", f"unknown role `{role}`.", _choices(role, _ROLES, "roles"), "`prompt`"
        )
    content = _text(location, turn, "content")
    if not content.strip():
        raise location.error(
            "prompt-empty", "the prompt is empty.", "Write one, or remove the row.", "`prompt`"
        )
    return Message(cast(_Role, role), content)


def _accept(location: SourceLocation, value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    phrases = value if isinstance(value, list | tuple) else [value]
    accept = tuple(_text(location, {"accept": phrase}, "accept") for phrase in phrases)
    if not all(phrase.strip() for phrase in accept):
        raise location.error(
            "accept-empty",
            "a phrase is empty; every response would contain it.",
            "Remove it.",
            "`accept`",
        )
    return accept


def _split(location: SourceLocation, values: dict[str, Any]) -> Split | None:
    name = _text(location, values, "split").strip()
    if not name and "split" in values:
        hint = f"Write one of {code_list(SPLITS)} in every row."
        raise location.error("split-missing", "the split is empty.", hint, "`split`")
    for split in SPLITS:
        if name == split:
            return split
    if not name:
        return None
    raise location.error(
        "split-unknown", f"unknown split `{name}`.", _choices(name, SPLITS, "splits"), "`split`"
    )


def check_consistent(examples: Sequence[LocatedExample]) -> None:
    """Check examples against each other.

    Raises:
        DataError: only some have a split, an example appears twice, or a pair has two examples of
            one label in a split.
    """
    first_of: dict[tuple[object, ...], LocatedExample] = {}
    first_of_pair: dict[tuple[object, ...], LocatedExample] = {}
    with_splits = any(one.split for one in examples)
    for one in examples:
        example, location = one.example, one.location
        if with_splits and not one.split:
            raise location.error(
                "split-missing",
                "this row has no split, and others have one.",
                "Write `split` in every row or in none.",
            )
        first = first_of.setdefault((example.prompt, example.label, example.prefill), one)
        if first is not one:
            raise location.error(
                "example-duplicate",
                f"the same prompt and label as in {first.location.short}.",
                "Remove one of the two.",
            )
        if not example.pair:
            continue
        first = first_of_pair.setdefault((example.pair, example.label, one.split), one)
        if first is not one:
            raise location.error(
                "pair-duplicate",
                f"the pair `{example.pair}` already has an example labelled `{example.label}`, in "
                f"{first.location.short}.",
                "Give a pair one example per label, and the other examples another pair.",
                "`pair`",
            )
