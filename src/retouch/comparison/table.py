"""The tables of a comparison: points of text, the best of each column marked, for any page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retouch.comparison.objective import Objective
from retouch.comparison.result import Result
from retouch.comparison.summary import BARE, PairedTest, Spread, SummaryRow, key
from retouch.concepts.concept import Concept
from retouch.core.formatting import show_value, words
from retouch.core.types import Better, Direction

DASH = "–"
LEAST_P = 0.0001
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A metric in a table.

    Attributes:
        name: `suite/metric`.
        title: at its head.
        unit: how its values are written.
        better: which way; decides what is marked.
        main: whether it belongs in a narrow table.
        worst: whether the worst seed is given beside the mean.
    """

    name: str
    title: str
    unit: str
    better: Better
    main: bool = True
    worst: bool = False


@dataclass(frozen=True)
class Text:
    """A point of a table, perhaps the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its footnotes."""

    labels: int
    head: tuple[str, ...]
    lines: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()


def columns(objective: Objective, concept: Concept, direction: Direction) -> list[Column]:
    """The effect; what was to stay as it was: the concept's own held rows, drift, everyday tasks.

    Which of the concept's metrics are of held rows, `DirectionSpec.hold` says.
    """
    held = set(concept.directions[direction].hold)
    effect, drift = objective.effect, objective.drift
    found = [
        Column(
            key(effect.suite, effect.metric),
            words(effect.metric) + " (worst seed)",
            effect.unit,
            objective.better,
            worst=True,
        )
    ]
    for spec in concept.metrics:
        own = spec.suite == effect.suite and spec != effect and set(spec.labels) <= held
        if own or spec.metric in (drift.metric, "task_accuracy"):
            title = words(spec.metric) if spec != drift else f"KL, {drift.unit}"
            name = key(spec.suite, spec.metric)
            found.append(Column(name, title, spec.unit, spec.better, main=not own))
    return found


def other_columns(results: Sequence[Result], shown: Sequence[Column]) -> list[Column]:
    """Every metric that was measured and is not shown yet."""
    seen = {column.name for column in shown}
    found: dict[str, Column] = {}
    for record in (record for result in results for record in result.records):
        name = key(record.suite, record.metric)
        if name not in seen:
            found.setdefault(name, Column(name, words(record.metric), record.unit, record.better))
    return list(found.values())


def make_table(
    labels: int,
    lines: Sequence[SummaryRow],
    shown: Sequence[Column],
    paired_tests: Sequence[PairedTest] = (),
    titles: Mapping[str, str] | None = None,
    *,
    seconds: bool = True,
) -> Table:
    """The methods at one number of labels, a line each.

    A method of which no seed came to its end has dashes; a footnote gives the reason. p is of the
    difference in effect from Retouch, and in drift, after Holm.
    """
    rows = [line for line in lines if line.labels == labels]
    ps = {(one.metric, one.method): one.p_holm for one in paired_tests if one.labels == labels}
    tested = [column for column in shown if any(name == column.name for name, _ in ps)]
    head = ["method", *(column.title for column in shown)]
    head += ["seconds"] if seconds else []
    head += [f"p, {'effect' if column.worst else 'drift'}" for column in tested]
    notes: list[str] = []
    made = []
    for line in rows:
        name = (titles or {}).get(line.method, line.method) + _footnote(line, notes)
        points = [Text(name)]
        for column in shown:
            spread = line.metrics.get(column.name)
            best = spread is not None and _is_best(line, column, rows)
            points.append(Text(DASH if spread is None else _show(spread, column), best))
        if seconds:
            points.append(Text(DASH if line.seconds is None else f"{line.seconds:.1f}"))
        points += [Text(_show_p(ps.get((column.name, line.method)))) for column in tested]
        made.append(tuple(points))
    return Table(labels, tuple(head), tuple(made), tuple(notes))


def markdown(table: Table) -> str:
    """The table as Markdown, with its footnotes."""

    def row(points: Sequence[str]) -> str:
        return "| " + " | ".join(point.replace("|", "\\|") for point in points) + " |"

    lines = [row(table.head), "|---" + "|---:" * (len(table.head) - 1) + "|"]
    lines += [
        row([f"**{point.text}**" if point.best else point.text for point in points])
        for points in table.lines
    ]
    notes = [f"{raised(number)} {note}  " for number, note in enumerate(table.notes, start=1)]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def raised(number: int) -> str:
    """The mark of a footnote."""
    return str(number).translate(_RAISED)


def _footnote(line: SummaryRow, notes: list[str]) -> str:
    marks = []
    reasons: dict[str, list[int]] = {}
    for seed, reason in line.failed.items():
        reasons.setdefault(reason, []).append(seed)
    for reason, seeds in reasons.items():
        which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        notes.append(f"{line.method}, {which}: {reason}")
        marks.append(raised(len(notes)))
    return " ".join(["", *marks]) if marks else ""


def _is_best(line: SummaryRow, column: Column, rows: Sequence[SummaryRow]) -> bool:
    """Whether no other method's mean is better, as far as the digits that are shown."""
    if column.better == "none" or line.method == BARE:
        return False
    sign = -1 if column.better == "lower" else 1
    means = {
        one.method: one.metrics[column.name].mean
        for one in rows
        if one.method != BARE and column.name in one.metrics
    }
    best = max(means.values(), key=lambda value: sign * value)
    return show_value(means[line.method], column.unit) == show_value(best, column.unit)


def _show(spread: Spread, column: Column) -> str:
    mean = show_value(spread.mean, column.unit)
    if not column.worst or spread.low == spread.high:
        return mean
    return f"{mean} ({show_value(spread.worst(column.better), column.unit)})"


def _show_p(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.4f}" if p >= LEAST_P else f"< {LEAST_P}"
