"""Figures beside their targets, as a table: the value of the base and those of each edit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retouch.core.serialization import to_plain
from retouch.core.types import Score


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        name: what is measured.
        target: for the mean over the adapters; None: it is reported only.
        higher: whether higher values are better.
    """

    name: str
    target: float | None = None
    higher: bool = True


@dataclass(frozen=True)
class FigureResult:
    """A figure with its values.

    Attributes:
        figure: what is measured.
        base: the value of the base.
        edited: the values of the adapters, in order; empty if none was measured.
    """

    figure: Figure
    base: Score | None
    edited: tuple[Score, ...]

    @property
    def mean(self) -> float:
        """The mean over the adapters."""
        return statistics.fmean(score.value for score in self.edited)

    @property
    def worst(self) -> Score:
        """The adapter with the worst value."""
        best = min if self.figure.higher else max
        return best(self.edited, key=lambda score: score.value)

    @property
    def met(self) -> bool | None:
        """Whether the mean reaches the target; None without a target or an adapter."""
        target = self.figure.target
        if target is None or not self.edited:
            return None
        return self.mean >= target if self.figure.higher else self.mean <= target

    def columns(self, adapters: int) -> list[str]:
        """The columns: figure, n, target, base, edited or mean and worst, met.

        Args:
            adapters: how many were measured; a line may be about the base alone.
        """
        sign = "≥" if self.figure.higher else "≤"
        target = "none" if self.figure.target is None else f"{sign} {self.figure.target:g}"
        edited = [""] * min(adapters, 2)
        if self.edited:
            edited[-1] = _score_text(self.worst)
        if self.edited and adapters > 1:
            edited[0] = f"{self.mean:.{_digits(self.mean)}f}"
        met = {None: "", True: "pass", False: "MISSED"}[self.met]
        n = (self.base or self.worst).n
        return [self.figure.name, str(n), target, _score_text(self.base), *edited, met]

    def plain(self) -> dict[str, Any]:
        """The line as values of JSON."""
        return {
            "figure": self.figure.name,
            "target": self.figure.target,
            "higher": self.figure.higher,
            "base": to_plain(self.base),
            "edited": to_plain(self.edited),
            "mean": self.mean if self.edited else None,
            "worst": to_plain(self.worst) if self.edited else None,
            "met": self.met,
        }


def figures_table(lines: Sequence[FigureResult], adapters: int) -> str:
    """The figures beside their targets, in Markdown."""
    edited = {0: [], 1: ["edited"]}.get(adapters, ["mean", "worst"])
    rows = [line.columns(adapters) for line in lines]
    return table([["figure", "n", "target", "base", *edited, "met"], *rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(f"{value:{w}}" for value, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _digits(value: float) -> int:
    return 4 if abs(value) < 0.02 else 3


def _score_text(score: Score | None) -> str:
    if score is None:
        return ""
    digits = _digits(score.value)
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"
