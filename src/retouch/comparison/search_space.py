"""The settings of a method that a search may draw, read off the class of its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

DIGITS = 3  # significant ones of a number that is drawn: what is kept in a file is to be read


@dataclass(frozen=True)
class Dimension:
    """One setting and its range.

    Attributes:
        name: of the field.
        default: its default, as a plain value.
        low: the least value; unused with `choices`.
        high: the greatest.
        log: whether it is drawn on a logarithmic scale.
        whole: whether it is a whole number.
        choices: the values it is one of, as plain values; empty for a range.
    """

    name: str
    default: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the range has the value in it; a default may lie outside."""
        return value in self.choices if self.choices else bool(self.low <= value <= self.high)

    def rounded(self, value: Any) -> Any:
        """A drawn number with few digits, within the range."""
        if self.choices or self.whole:
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class SearchSpace:
    """All that may be drawn of a method's settings."""

    dimensions: tuple[Dimension, ...]

    def defaults(self) -> dict[str, Any]:
        """The defaults of what may be drawn."""
        return {one.name: one.default for one in self.dimensions}

    def starting(self, values: Mapping[str, Any]) -> SearchSpace:
        """The same space with other defaults, where `values` has them."""
        dimensions = (
            replace(one, default=plain(values.get(one.name, one.default)))
            for one in self.dimensions
        )
        return SearchSpace(tuple(dimensions))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether every value lies in its range."""
        return all(one.holds(values[one.name]) for one in self.dimensions)

    def size(self) -> int | None:
        """How many points there are; None where a range is among the dimensions."""
        total = 1
        for one in self.dimensions:
            if not one.choices:
                return None
            total *= len(one.choices)
        return total

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a space of choices alone."""
        names = [one.name for one in self.dimensions]
        for values in itertools.product(*(one.choices for one in self.dimensions)):
            yield dict(zip(names, values, strict=True))


def find_search_space(settings: type[BaseModel]) -> SearchSpace:
    """What `methods.method.tunable` marked.

    Raises:
        ValueError: a marked field has neither a range nor choices; the method's author hints it.
    """
    found = []
    for name, field in settings.model_fields.items():
        extra = field.json_schema_extra
        search = extra.get("search") if isinstance(extra, dict) else None
        if isinstance(search, dict):
            found.append(_dimension(name, field.default, search))
    return SearchSpace(tuple(found))


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists."""
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def _dimension(name: str, default: Any, search: Mapping[str, Any]) -> Dimension:
    choices = search.get("choices") or ([False, True] if isinstance(default, bool) else [])
    if choices:
        return Dimension(name, plain(default), choices=tuple(plain(one) for one in choices))
    low, high = search.get("low"), search.get("high")
    if low is None or high is None:
        raise ValueError(f"The setting {name} is to be searched and has no range.")
    return Dimension(
        name, default, low, high, bool(search.get("log")), whole=isinstance(default, int)
    )
