"""The objects of a run as JSON, and back to equal objects; pydantic validates what is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from retouch.core.types import Event, StageEvent

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(value: Any) -> Any:
    """A dataclass as JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_plain(kind: type[T], values: Any) -> T:
    """The object that `to_plain` made these values of.

    Raises:
        ValueError: a value is missing or has the wrong type.
    """
    found: T = _adapter(kind).validate_python(values)
    return found


def to_json(value: Any, *, indent: int | None = None, sort: bool = False) -> str:
    """JSON text of plain values.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair, as broken data may hold, has no UTF-8 form, only an escape.
        text = json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort)
    return text


def plain_event(event: Event) -> Mapping[str, Any]:
    """Any event with its kind: what `retouch edit --json` prints."""
    kind = "stage" if isinstance(event, StageEvent) else "round"
    return {"event": kind, **to_plain(event)}
