"""Tables of scores and of responses; texts of models and users are never parsed as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from retouch.core.finding import Finding
from retouch.core.formatting import change, show_interval, show_value, words
from retouch.core.types import Message, Record

CHANGE_STYLES = {
    "better": "green",
    "worse": "red",
    "changed": "yellow",
    "unclear": "dim",
    "": "dim",
}
LEVEL_STYLES = {"error": "red", "warning": "yellow", "ok": "green"}
BOX = box.SIMPLE_HEAD


def scores(records: Sequence[Record], title: str = "") -> Table:
    """One line per metric with its 95 % interval, for the base and, if there is one, the edit."""
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
            # A line instead of a column: the numbers take the width of a small terminal.
            suite = record.suite
            table.add_row(Text(suite, style="cyan"))
        unit = record.unit
        entries = [Text(words(record.metric) + ("" if unit == "rate" else f" ({unit})"))]
        for score in (record.before, record.after) if compared else (record.before,):
            if score is None:
                entries += [Text(""), Text("")]
            else:
                entries.append(Text(show_value(score.value, unit)))
                entries.append(Text(show_interval(score, unit)))
        entries.append(Text(str(record.before.n)))
        if compared:
            changed = change(record)
            entries.append(Text(changed or "none", style=CHANGE_STYLES[changed]))
        table.add_row(*entries)
    return table


def side_by_side(base: str, edited: str) -> Table:
    """The responses of both models in two columns."""
    table = Table(box=BOX, pad_edge=False, expand=True)
    table.add_column("base", ratio=1, style="dim", overflow="fold")
    table.add_column("edited", ratio=1, overflow="fold")
    table.add_row(Text(base or "(empty)"), Text(edited or "(empty)"))
    return table


def turns(prompt: Iterable[Message]) -> Text:
    """A chat up to the response, with the last turn in bold."""
    *earlier, last = prompt
    text = Text()
    for turn in earlier:
        text.append(f"{turn.role}: {turn.content}\n", style="dim")
    text.append(last.content, style="bold")
    return text


def findings(console: Console, found: Iterable[Finding]) -> None:
    """Print findings of a check, one per line."""
    for finding in found:
        line = Text(f"{finding.level:>7}  ", style=LEVEL_STYLES[finding.level])
        line.append(f"{finding.code}: {finding.message}", style="default")
        if finding.hint:
            line.append(f" {finding.hint}", style="dim")
        console.print(line, soft_wrap=True)


def commands(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print commands with their descriptions, unwrapped so that they can be copied."""
    width = max(len(command) for command, _ in lines)
    for command, description in lines:
        line = Text("  ").append(command.ljust(width), style="cyan")
        console.print(line.append(f"  {description}", style="dim"), soft_wrap=True)


def plain(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A plain table."""
    table = Table(*columns, box=BOX, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(entry)) for entry in row))
    return table
