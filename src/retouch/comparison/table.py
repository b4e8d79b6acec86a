"""The tables of a comparison in Markdown and HTML, and its page, `compare.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from retouch.comparison.grid import Grid
from retouch.comparison.objective import Objective, metric_key
from retouch.comparison.result import Result
from retouch.comparison.summary import UNEDITED, PairedTest, SummaryRow
from retouch.concepts.concept import Concept
from retouch.core.formatting import DIRECTION_DONE, show_p, show_value, words
from retouch.core.types import Better, Direction

MISSING = "–"
SIGNIFICANT = 0.05
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A metric in a table.

    Attributes:
        key: `suite/metric`.
        better: which way is better; the best value is marked.
        main: whether a narrow table includes it.
        worst: whether the worst seed is shown beside the mean.
    """

    key: str
    title: str
    unit: str
    better: Better
    main: bool = True
    worst: bool = False


@dataclass(frozen=True)
class Entry:
    """An entry of a table, whether it is the best of its column, and a mark after it."""

    text: str
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table for one number of examples, with its footnotes."""

    num_examples: int
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


def main_columns(objective: Objective, concept: Concept, direction: Direction) -> list[Column]:
    """The columns of the main table: effect, retained metrics, drift and ordinary tasks.

    The retained metrics are those of the effect's suite that are measured on the retain set alone.
    """
    retained = set(concept.directions[direction].retain)
    effect, drift = objective.effect, objective.drift
    title = f"{words(effect.metric)} (worst seed)"
    columns = [Column(metric_key(effect), title, effect.unit, objective.better, worst=True)]
    for spec in concept.metrics:
        retain = spec.suite == effect.suite and spec != effect and set(spec.labels) <= retained
        if retain or spec.metric in (drift.metric, "task_accuracy"):
            title = f"KL, {drift.unit}" if spec == drift else words(spec.metric)
            columns.append(Column(metric_key(spec), title, spec.unit, spec.better, main=not retain))
    return columns


def other_columns(results: Sequence[Result], columns: Sequence[Column]) -> list[Column]:
    """The columns of every metric that was measured and is not among `columns`."""
    found: dict[str, Column] = {}
    for record in (record for result in results for record in result.records):
        key = metric_key(record)
        found.setdefault(key, Column(key, words(record.metric), record.unit, record.better))
    excluded = {column.key for column in columns}
    return [column for column in found.values() if column.key not in excluded]


def suite_columns(results: Sequence[Result], suites: Sequence[Concept]) -> list[Column]:
    """The columns of the metrics of public evaluation sets, each with the set's name."""
    names = {one.name for one in suites}
    return [
        replace(column, title=f"{column.key.replace('/', ': ')}")
        for column in other_columns(results, ())
        if column.key.partition("/")[0] in names
    ]


def suite_table(
    num_examples: int,
    rows: Sequence[SummaryRow],
    columns: Sequence[Column],
    tests: Sequence[PairedTest],
    titles: Mapping[str, str],
) -> Table:
    """Public evaluation sets of one number of examples: a row for each metric.

    A value has the worst seed in brackets, and a star where it differs from Retouch's by the paired
    test with Holm's correction.
    """
    rows = [row for row in rows if row.num_examples == num_examples]
    differs = {
        (one.metric, one.method)
        for one in tests
        if one.num_examples == num_examples and one.p_holm < SIGNIFICANT
    }
    lines = []
    for column in columns:
        listed = replace(column, title=words(column.title), worst=True)
        best = _best(listed, rows)
        entries = [_entry(row, listed, best) for row in rows]
        lines.append(
            (
                Entry(listed.title),
                *(
                    replace(entry, mark=" *") if (column.key, row.method) in differs else entry
                    for entry, row in zip(entries, rows, strict=True)
                ),
            )
        )
    head = ("metric", *(titles.get(row.method, row.method) for row in rows))
    return Table(num_examples, head, tuple(lines))


def make_table(
    num_examples: int,
    rows: Sequence[SummaryRow],
    columns: Sequence[Column],
    tests: Sequence[PairedTest] = (),
    titles: Mapping[str, str] | None = None,
    *,
    seconds: bool = True,
) -> Table:
    """Make the table of one number of examples, with a row for each method.

    The adjusted p-values of `tests` are shown beside the effect and the drift. A method without a
    completed seed has dashes, and a footnote gives the reason.
    """
    rows = [row for row in rows if row.num_examples == num_examples]
    p = {
        (one.metric, one.method): show_p(one.p_holm)
        for one in tests
        if one.num_examples == num_examples
    }
    columns = [one for one in columns if any(one.key in row.metrics for row in rows)]
    tested = [column for column in columns if any(key == column.key for key, _ in p)]
    best = {column.key: _best(column, rows) for column in columns}
    head = ["method", *(column.title for column in columns)]
    head += ["seconds"] if seconds else []
    head += [f"p, {'effect' if column.worst else 'drift'}" for column in tested]
    notes: list[str] = []
    lines = []
    for row in rows:
        line = [Entry((titles or {}).get(row.method, row.method) + _note_marks(row, notes))]
        line += [_entry(row, column, best[column.key]) for column in columns]
        if seconds:
            line.append(Entry(MISSING if row.seconds is None else f"{row.seconds:.1f}"))
        line += [Entry(p.get((column.key, row.method), "")) for column in tested]
        lines.append(tuple(line))
    return Table(num_examples, tuple(head), tuple(lines), tuple(notes))


def markdown(table: Table) -> str:
    """The table in Markdown, with its footnotes."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    lines = [line(table.head), "|---" + "|---:" * (len(table.head) - 1) + "|"]
    lines += [
        # Markdown ends no bold text with a space before the asterisks: the mark comes after them.
        line([(f"**{entry.text}**" if entry.best else entry.text) + entry.mark for entry in row])
        for row in table.rows
    ]
    lines += ["", *(f"{note}  " for note in _numbered(table.notes))] if table.notes else []
    return "\n".join(lines) + "\n"


def html(table: Table) -> str:
    """The table in HTML, with its footnotes."""
    lines = ["".join(f"<th>{escape(text)}</th>" for text in table.head)]
    for row in table.rows:
        texts = (
            (f"<b>{escape(one.text)}</b>" if one.best else escape(one.text)) + escape(one.mark)
            for one in row
        )
        lines.append("".join(f"<td>{text}</td>" for text in texts))
    notes = "".join(f"<br>{escape(note)}" for note in _numbered(table.notes))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table><p>{notes}</p>"


def render_markdown(
    grid: Grid,
    results: Sequence[Result],
    rows: Sequence[SummaryRow],
    tests: Sequence[PairedTest],
    titles: Mapping[str, str],
) -> str:
    """Render the page: for each number of examples the main table, and the other metrics."""
    concept, objective = grid.concept, grid.objective()
    columns = main_columns(objective, concept, grid.direction)
    public = suite_columns(results, grid.suites)
    others = other_columns(results, [*columns, *public])
    seeds = f"{len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "one seed"
    for id, number in grid.more_seeds.items():
        seeds += f", {titles.get(id, id)} over {number}"
    limit = "" if grid.limit is None else f" ({grid.limit} examples per metric)"
    parts = [
        f"# {concept.title}, {DIRECTION_DONE[grid.direction]}: methods compared on {grid.model}\n",
        f"Means over {seeds} on the test split{limit}. The effect is "
        f"{words(objective.effect.metric)}, {objective.better} is better. Every method was trained "
        "on the same examples: as many source examples as the heading says, and as many target "
        f"examples. Settings: {grid.settings_origin}. Seconds are the time of the method, without "
        "the evaluation. The best value of each column is bold; the unedited model is left out.\n",
    ]
    if tests:
        parts.append(
            "p is the two-sided p-value of the difference from Retouch in effect and in drift: a "
            "paired bootstrap over examples and seeds, adjusted by Holm's method for the methods "
            "in the table.\n"
        )
    parts.append("![Effect against drift](compare.png)\n")
    for count in grid.num_examples:
        parts.append(f"## {count} examples\n")
        parts.append(markdown(make_table(count, rows, columns, tests, titles)))
        if public:
            parts.append(f"### Public evaluation sets, {count} examples\n")
            parts.append(
                "The worst seed in brackets; a star marks a difference from Retouch with p < "
                f"{SIGNIFICANT}, adjusted by Holm's method for the methods.\n"
            )
            parts.append(markdown(suite_table(count, rows, public, tests, titles)))
        if others:
            parts.append(f"### The other metrics, {count} examples\n")
            parts.append(markdown(make_table(count, rows, others, (), titles, seconds=False)))
    return "\n".join(parts)


def _numbered(notes: Sequence[str]) -> Iterator[str]:
    for number, note in enumerate(notes, start=1):
        yield f"{str(number).translate(_SUPERSCRIPT)} {note}"


def _note_marks(row: SummaryRow, notes: list[str]) -> str:
    """Add a footnote for each reason that seeds failed for; returns their marks."""
    seeds_by_reason: dict[str, list[int]] = {}
    for seed, reason in row.failures.items():
        seeds_by_reason.setdefault(reason, []).append(seed)
    marks = ""
    for reason, seeds in seeds_by_reason.items():
        named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        notes.append(f"{row.method}, {named}: {reason}")
        marks += f" {len(notes)}".translate(_SUPERSCRIPT)
    return marks


def _best(column: Column, rows: Sequence[SummaryRow]) -> str:
    """The best mean of the methods as it is shown; empty if there is none."""
    means = [
        row.metrics[column.key].mean
        for row in rows
        if row.method != UNEDITED and column.key in row.metrics
    ]
    if not means or column.better == "none":
        return ""
    return show_value(min(means) if column.better == "lower" else max(means), column.unit)


def _entry(row: SummaryRow, column: Column, best: str) -> Entry:
    """The mean, which is marked if no other method's is better to the digits that are shown."""
    stats = row.metrics.get(column.key)
    if stats is None:
        return Entry(MISSING)
    mean, worst = (show_value(v, column.unit) for v in (stats.mean, stats.worst(column.better)))
    text = f"{mean} ({worst})" if column.worst and stats.low != stats.high else mean
    return Entry(text, row.method != UNEDITED and mean == best)
