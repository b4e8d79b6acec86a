"""Tables of scores and of responses; what models and users wrote never counts as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from retouch.core.formatting import change, show_interval, show_value, words
from retouch.core.types import Message, Record

STYLES = {"better": "green", "worse": "red", "changed": "yellow", "unclear": "dim", "": "dim"}
BOX = box.SIMPLE_HEAD


def scores(records: Sequence[Record], title: str = "") -> Table:
    """The validation_score card: one line a metric, with 95 % intervals; both models if there are two."""
    compared = any(record.after is not None for record in records)
    table = Table(title=title or None, title_justify="left", box=BOX, padding=(0, 1, 0, 0))
    table.add_column("metric")
    for name in ("before", "after") if compared else ("value",):
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", style="dim", no_wrap=True)
    table.add_column("n", justify="right", style="dim", no_wrap=True)
    if compared:
        table.add_column("change", no_wrap=True)
    suite = ""
    for record in records:
        if record.suite != suite:
            # A line of its own, not a column: the numbers need the width of a small terminal.
            suite = record.suite
            table.add_row(Text(suite, style="cyan"))
        unit = record.unit
        points = [Text(words(record.metric) + ("" if unit == "rate" else f" ({unit})"))]
        for score in (record.before, record.after) if compared else (record.before,):
            if score is None:
                points += [Text(""), Text("")]
            else:
                points.append(Text(show_value(score.value, unit)))
                points.append(Text(show_interval(score, unit)))
        points.append(Text(str(record.before.n)))
        if compared:
            what = change(record)
            points.append(Text(what or "none", style=STYLES[what]))
        table.add_row(*points)
    return table


def side_by_side(base: str, edited: str) -> Table:
    """Two responses beside each other."""
    table = Table(box=BOX, pad_edge=False, expand=True)
    table.add_column("base", ratio=1, style="dim", overflow="fold")
    table.add_column("edited", ratio=1, overflow="fold")
    table.add_row(Text(base or "(nothing)"), Text(edited or "(nothing)"))
    return table


def turns(prompt: Iterable[Message]) -> Text:
    """A chat up to the response, the user's last turn in bold."""
    shown = list(prompt)
    text = Text()
    for turn in shown[:-1]:
        text.append(f"{turn.role}: {turn.content}\n", style="dim")
    text.append(shown[-1].content, style="bold")
    return text


def commands(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """What to do next: commands, each with what it does, unwrapped, for copying."""
    width = max(len(command) for command, _ in lines)
    for command, what in lines:
        line = (
            Text("  ").append(command.ljust(width), style="cyan").append(f"  {what}", style="dim")
        )
        console.print(line, soft_wrap=True)


def rows(columns: Sequence[str], values: Iterable[Sequence[object]]) -> RenderableType:
    """A plain table."""
    table = Table(*columns, box=BOX, pad_edge=False)
    for row in values:
        table.add_row(*(Text(str(point)) for point in row))
    return table
