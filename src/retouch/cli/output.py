"""Console, progress, tables and JSON of the commands; no text is parsed as markup.

rich is imported when something is printed, so that `--help` is fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from retouch.cli.loading import quiet_libraries
from retouch.core.atomic import atomic_write, check_output_file
from retouch.core.finding import Finding
from retouch.core.formatting import change, metric_title, score_columns, show_p, visible
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import Message, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from retouch.cli.progress import EditProgress

CHANGE_STYLES = {"better": "green", "worse": "red", "changed": "yellow"}
OUTCOME_STYLES = {
    "success": "bold green",
    "side-effects": "bold yellow",
    "failed": "bold red",
    "unmeasured": "bold",
}
LEVEL_STYLES = {"error": "red", "warning": "yellow", "ok": "green"}


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints strings as they are, with control characters made visible."""
    from rich.console import Console

    class VisibleConsole(Console):
        """Shows strings, also those in the cells of tables, as `visible` makes them."""

        def render_str(self, text: str, **options: Any) -> Text:
            """The text of a string."""
            return super().render_str(visible(text), **options)

    return VisibleConsole(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line to stdout or stderr, with control characters made visible."""
    typer.echo(visible(text), err=err)


def echo_json(values: Any, *, indent: int | None = None) -> None:
    """Print values as JSON, with escapes where the encoding of stdout lacks a character."""
    plain_values = to_plain(values)
    text = to_json(plain_values, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain_values, indent=indent)
    typer.echo(text)


@contextmanager
def show_progress(
    *, quiet: bool = False, interrupted: str = "Interrupted."
) -> Iterator[EditProgress]:
    """Show events on stderr, so that the tables or the JSON on stdout can be redirected.

    `interrupted` is the message after Ctrl-C.
    """
    from retouch.cli.progress import EditProgress

    quiet_libraries()
    try:
        with EditProgress(console(stderr=True, quiet=quiet)) as progress:
            yield progress
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted) from None


def check_metrics_file(file: Path | None) -> None:
    """Check, before the work, that metrics can be written to a file.

    Raises:
        RunError: the file exists and holds no metrics.
    """
    if file is not None:
        check_output_file(file, _holds_metrics)


def _holds_metrics(text: str) -> bool:
    values = json.loads(text)
    records = values.get("records") if isinstance(values, dict) else values
    return isinstance(records, list) and all(
        isinstance(one, dict) and {"suite", "metric", "before"} <= one.keys() for one in records
    )


def write_json(values: Any, *, as_json: bool, file: Path | None = None) -> None:
    """Write dataclasses and plain values as JSON: to a file if there is one, and to stdout."""
    text = to_json(to_plain(values), indent=2)
    if file is not None:
        atomic_write(file, text + "\n")
    if as_json:
        echo_json(values, indent=2)


def table(*columns: str, **options: Any) -> Table:
    """An empty table."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, title_justify="left", **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A text of parts with their styles, with control characters made visible."""
    from rich.text import Text

    return Text.assemble(
        *(visible(one) if isinstance(one, str) else (visible(one[0]), one[1]) for one in parts)
    )


def plain(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table."""
    made = table(*columns, pad_edge=False)
    for row in rows:
        made.add_row(*map(str, row))
    return made


def scores(
    records: Sequence[Record],
    title: str = "",
    p_values: Mapping[tuple[str, str], float] | None = None,
) -> Table:
    """One line per metric with its 95 % interval, for the base and, if there is one, the edit.

    Beside the change is the p of no change on the same examples, where `p_values` has it.
    """
    compared = any(record.after is not None for record in records)
    made = table("metric", title=title or None, padding=(0, 1, 0, 0))
    for name in ("before", "after") if compared else ("value",):
        made.add_column(name, justify="right", no_wrap=True)
        made.add_column("95 % interval", justify="right", style="dim", no_wrap=True)
    made.add_column("n", justify="right", style="dim", no_wrap=True)
    if compared:
        made.add_column("change", no_wrap=True)
    if p_values:
        made.add_column("p", justify="right", style="dim", no_wrap=True)
    suite = ""
    for record in records:
        if record.suite != suite:
            # A line instead of a column: the numbers take the width of a small terminal.
            suite = record.suite
            made.add_row(suite, style="cyan")
        columns = [metric_title(record), *score_columns(record.before, record.unit)]
        if compared:
            columns += score_columns(record.after, record.unit)
        changed = change(record)
        mark = styled((changed or "none", CHANGE_STYLES.get(changed, "dim")))
        p = (p_values or {}).get((record.suite, record.metric))
        text = "" if p is None else show_p(p)
        rest = [mark] if compared else []
        made.add_row(*columns, str(record.before.n), *rest, *([text] if p_values else []))
    return made


def side_by_side(base: str, edited: str) -> Table:
    """The responses of both models in two columns."""
    made = table(pad_edge=False, expand=True)
    made.add_column("base", ratio=1, style="dim", overflow="fold")
    made.add_column("edited", ratio=1, overflow="fold")
    made.add_row(base or "(empty)", edited or "(empty)")
    return made


def turns(prompt: Iterable[Message]) -> Text:
    """A chat up to the response, with the last turn in bold."""
    *earlier, last = prompt
    lines = [(f"{turn.role}: {turn.content}\n", "dim") for turn in earlier]
    return styled(*lines, (last.content, "bold"))


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings of a check, one per line."""
    for finding in findings:
        level = (f"{finding.level:>7}  ", LEVEL_STYLES[finding.level])
        hint = (f" {finding.hint}" if finding.hint else "", "dim")
        message = f"{finding.code}: {finding.message}"
        console().print(styled(level, message, hint), soft_wrap=True)


def print_next_steps(path: Path, *steps: tuple[str, str], noun: str = "run") -> None:
    """Print the path of a run, and commands with their descriptions, unwrapped for copying."""
    echo(f"The {noun}: {path}\nNext:")
    width = max(len(command) for command, _ in steps)
    for command, description in steps:
        line = styled("  ", (command.ljust(width), "cyan"), (f"  {description}", "dim"))
        console().print(line, soft_wrap=True)
