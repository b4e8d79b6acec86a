"""The objects of a run as JSON, and back to equal objects; pydantic validates what is read."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

T = TypeVar("T")

# Control characters above 127, and marks of direction.
_OBEYED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(value: Any) -> Any:
    """Dataclasses, and lists and mappings of them, as JSON values."""
    return to_jsonable_python(value)


def from_plain(kind: type[T], values: Any) -> T:
    """The object that `to_plain` made these values of.

    Raises:
        ValueError: a value is missing or has the wrong type.
    """
    # mypy does not know that a class is hashable.
    adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
    return adapter.validate_python(values)


def parse_json(text: str) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has NaN or a number beyond a float.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is no finite number")
    return value


def to_json(value: Any, *, indent: int | None = None, sort: bool = False) -> str:
    """JSON text of plain values, without characters that a terminal obeys.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair, as broken data may hold, has no UTF-8 form, only an escape.
        return json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort)
    # JSON escapes those below 32 itself.
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
