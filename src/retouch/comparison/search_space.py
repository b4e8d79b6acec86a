"""The search space of a method, generated from the class of its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from retouch.core.options import list_options
from retouch.core.serialization import to_plain

DIGITS = 3  # significant digits of a sampled number, so that settings files stay legible


@dataclass(frozen=True)
class Dimension:
    """One setting and its range.

    Attributes:
        path: the dotted path of the setting, such as `train.learning_rate`.
        default: the value of the first trial.
        low: the minimum; unused with `choices`.
        high: the maximum; unused with `choices`.
        log: whether the range is sampled on a logarithmic scale.
        integer: whether the values are integers.
        choices: the values of a categorical setting; empty for a range.
    """

    path: str
    default: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    def contains(self, value: Any) -> bool:
        """Whether the value is in the range; a default need not be."""
        return value in self.choices if self.choices else bool(self.low <= value <= self.high)

    def rounded(self, value: Any) -> Any:
        """A sampled value with few digits, within the range."""
        if self.choices or self.integer:
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class SearchSpace:
    """The settings of a method that are searched."""

    dimensions: tuple[Dimension, ...]

    def defaults(self) -> dict[str, Any]:
        """The settings of the first trial."""
        return {one.path: one.default for one in self.dimensions}

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether every value is in its range."""
        return all(one.contains(values[one.path]) for one in self.dimensions)

    @property
    def categorical(self) -> bool:
        """Whether the space is finite: every setting is categorical."""
        return all(one.choices for one in self.dimensions)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a categorical space."""
        paths = [one.path for one in self.dimensions]
        for values in itertools.product(*(one.choices for one in self.dimensions)):
            yield dict(zip(paths, values, strict=True))


def build_search_space(
    settings: type[BaseModel], defaults: Mapping[str, Any] | None = None
) -> SearchSpace:
    """Build the search space from the fields that `core.config.option` gives a search range.

    Args:
        settings: the class of a method's settings; nested groups are included.
        defaults: values by dotted path that replace the defaults of the class.
    """
    dimensions = []
    for option in list_options(settings):
        search = option.extra.get("search")
        if not isinstance(search, dict):
            continue
        default = option.field.default
        first = to_plain((defaults or {}).get(option.path, default))
        if "choices" in search:
            choices = tuple(to_plain(one) for one in search["choices"])
            dimensions.append(Dimension(option.path, first, choices=choices))
        else:
            dimensions.append(
                Dimension(
                    option.path,
                    first,
                    low=search["low"],
                    high=search["high"],
                    log=bool(search.get("log")),
                    integer=isinstance(default, int),
                )
            )
    return SearchSpace(tuple(dimensions))
