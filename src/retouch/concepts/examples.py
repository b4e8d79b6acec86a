"""Read the rows of a concept as examples; an error names file, line, column and hint."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args

from retouch.concepts.concept import Example
from retouch.concepts.readers import SourceLocation, did_you_mean, kind_of, named, read_table
from retouch.core.types import SPLITS, Message, Split

COLUMNS = ("prompt", "label", "response", "pair", "prefill", "accept", "group", "entity")
LABELS = ("positive", "negative", "retain")

_Role = Literal["system", "user", "assistant"]
_ROLES: tuple[str, ...] = get_args(_Role)


@dataclass(frozen=True, slots=True)
class Row:
    """An example, where it stands, and the split its file puts it in, if it does."""

    example: Example
    place: SourceLocation
    split: Split | None = None


def read_examples(file: Path | Traversable) -> tuple[Example, ...]:
    """Read a pack's rows, in file order.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """
    return tuple(row.example for row in read_rows(file))


def read_rows(file: Path | Traversable, *, own: bool = False) -> list[Row]:
    """Read the rows of a CSV, JSONL or Parquet file, in file order.

    Args:
        file: what to read; its ending says the format.
        own: whether it is a user's own file: its labels are `positive`, `negative` and `retain`,
            and it may have a column `split`. A pack has labels of its own.

    Raises:
        DataError: the file cannot be read or a row is wrong.
    """
    known = (*COLUMNS, "split") if own else COLUMNS
    rows = [
        Row(_example(place, values, own), place, _split(place, values))
        for place, values in read_table(file, known)
    ]
    _check_together(rows)
    return rows


def _example(place: SourceLocation, values: dict[str, Any], own: bool) -> Example:
    label = _text(place, values, "label").strip()
    if not label:
        raise place.error("there is no label.", "Give every row one.", "`label`")
    if own and label not in LABELS:
        hint = f"{did_you_mean(label, LABELS)} The labels are {named(LABELS)}.".strip()
        raise place.error(f"unknown label `{label}`.", hint, "`label`")
    return Example(
        prompt=_prompt(place, values),
        label=label,
        response=_text(place, values, "response") or None,
        pair=_text(place, values, "pair").strip() or None,
        prefill=_text(place, values, "prefill"),
        accept=_accept(place, values.get("accept")),
        group=_text(place, values, "group").strip(),
        entity=_text(place, values, "entity").strip(),
    )


def _text(place: SourceLocation, values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = "Write a text in quotation marks."
        if isinstance(value, int | float) and not isinstance(value, bool):
            hint = f'Put it in quotation marks: "{value}".'
        raise place.error(f"this is {kind_of(value)}, not a text.", hint, f"`{key}`")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise place.error(
            "half of a surrogate pair is no character.", "Write the character itself.", f"`{key}`"
        ) from None
    return value


def _prompt(place: SourceLocation, values: dict[str, Any]) -> tuple[Message, ...]:
    turns = values.get("prompt")
    if not isinstance(turns, list):
        turns = [{"role": "user", "content": _text(place, values, "prompt")}]
    if not turns:
        turns = [{"role": "user", "content": ""}]
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise place.error(
                "a turn of the prompt is not an object with just `role` and `content`.",
                'Write turns as {"role": "user", "content": "..."}.',
                "`prompt`",
            )
        role = _text(place, turn, "role")
        if role not in _ROLES:
            hint = f"{did_you_mean(role, _ROLES)} The roles are {named(_ROLES)}.".strip()
            raise place.error(f"unknown role `{role}`.", hint, "`prompt`")
        content = _text(place, turn, "content")
        if not content.strip():
            raise place.error("the prompt is empty.", "Write one, or remove the row.", "`prompt`")
        messages.append(Message(cast(_Role, role), content))
    if messages[-1].role != "user":
        raise place.error(
            f"the prompt ends with the {messages[-1].role}'s turn, not the user's.",
            "Move a response to `response`, and the beginning of one to `prefill`.",
            "`prompt`",
        )
    return tuple(messages)


def _accept(place: SourceLocation, value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    phrases = value if isinstance(value, list) else [value]
    accept = tuple(_text(place, {"accept": phrase}, "accept") for phrase in phrases)
    if not all(phrase.strip() for phrase in accept):
        raise place.error(
            "an empty phrase is in every response.", "Remove it from the list.", "`accept`"
        )
    return accept


def _split(place: SourceLocation, values: dict[str, Any]) -> Split | None:
    name = _text(place, values, "split").strip()
    if not name and "split" in values:
        raise place.error(
            "the row has no split.", f"Write one of {named(SPLITS)}, in every row.", "`split`"
        )
    for split in SPLITS:
        if name == split:
            return split
    if not name:
        return None
    hint = f"{did_you_mean(name, SPLITS)} The splits are {named(SPLITS)}.".strip()
    raise place.error(f"unknown split `{name}`.", hint, "`split`")


def _check_together(rows: list[Row]) -> None:
    """Refuse what is wrong between rows: some without a split, a row twice, a pair's side twice."""
    seen: dict[tuple[object, ...], Row] = {}
    direction_spec: dict[tuple[object, ...], Row] = {}
    whole = any(row.split for row in rows)
    for row in rows:
        example, place = row.example, row.place
        if whole and not row.split:
            raise place.error(
                "the row has no split, and others have.", "Write `split` in every row or in none."
            )
        first = seen.setdefault((example.prompt, example.label, example.prefill), row)
        if first is not row:
            raise place.error(
                f"the same prompt and label as {place.unit} {first.place.line}.",
                "Remove one of the two.",
            )
        if not example.pair:
            continue
        first = direction_spec.setdefault((example.pair, example.label, row.split), row)
        if first is not row:
            raise place.error(
                f"the pair `{example.pair}` has a `{example.label}` row already, in {place.unit} "
                f"{first.place.line}.",
                "Give a pair one row a label, and other rows a pair of their own.",
                "`pair`",
            )
