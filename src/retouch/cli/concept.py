"""`retouch concept`: the concepts that are built in, and a check of one's own."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from retouch.concepts.concept import Concept
from retouch.core.errors import DataError
from retouch.core.types import DIRECTIONS, SPLITS

app = typer.Typer(
    help="List the built-in concepts, show one, or check your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="a built-in concept, or a file")]


@app.command("list", short_help="List the built-in concepts.")
def list_() -> None:
    """List the built-in concepts."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.concepts.registry import builtin_names, load_concept

    concepts = [load_concept(name) for name in builtin_names()]
    console = Console(highlight=False)
    console.print(
        tables.rows(
            ("concept", "what it is", "directions"),
            [
                (c.name, c.title, ", ".join(c.directions) or "none (data for others)")
                for c in concepts
            ],
        )
    )


@app.command("show", short_help="Show what a concept moves, holds and measures.")
def show(name: Name) -> None:
    """Show a concept: its directions, its rows, its metrics, and an example of each label."""
    from rich.console import Console
    from rich.text import Text

    from retouch.cli import tables
    from retouch.concepts.registry import load_concept

    concept = load_concept(name)
    console = Console(highlight=False)
    console.print(Text(f"{concept.name}: {concept.title}", style="bold"))
    console.print(Text(concept.description), soft_wrap=True)
    console.print(_sides(concept))
    console.print(_rows(concept))
    if concept.metrics:
        console.print(
            tables.rows(
                ("suite", "metric", "scorer", "rows", "better"),
                [
                    (m.suite, m.metric, m.scorer, ", ".join(m.labels), m.better)
                    for m in concept.metrics
                ],
            )
        )
    seen: set[str] = set()
    for row in concept.examples["train"]:
        if row.label not in seen:
            seen.add(row.label)
            console.print(Text(f"{row.label}: ", style="dim").append_text(tables.turns(row.prompt)))
            if row.response:
                console.print(Text(f"  -> {row.response}"))
    console.print(Text(f"data, SHA-256: {concept.hash}", style="dim"), soft_wrap=True)


@app.command("check", short_help="Check that a concept can be edited.")
def check(name: Name) -> None:
    """Look for what would spoil an edit or its scores; exits with 3 where there is an error."""
    from rich.console import Console
    from rich.text import Text

    from retouch.concepts.registry import load_concept
    from retouch.concepts.validate import check as look_through

    concept = load_concept(name)
    console = Console(highlight=False)
    findings = look_through(concept)
    for finding in findings:
        line = Text(f"{finding.level:>7}  ", style=STYLES[finding.level])
        console.print(line.append(finding.text, style="default"), soft_wrap=True)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise DataError(
            f"{concept.name} has {errors} error{'s' if errors > 1 else ''}, listed above.",
            "Mend its rows, then check again.",
        )
    typer.echo(f"{concept.name} is sound: {sum(map(len, concept.examples.values()))} rows.")


def _sides(concept: Concept) -> object:
    from retouch.cli import tables

    return tables.rows(
        ("direction", "moves", "towards", "holds", ""),
        [
            (
                direction,
                ", ".join(side.source),
                ", ".join(side.target),
                ", ".join(side.hold),
                "weakens safety" if direction == concept.weakens else "",
            )
            for direction in DIRECTIONS
            if (side := concept.directions.get(direction))
        ],
    )


def _rows(concept: Concept) -> object:
    from retouch.cli import tables

    counts = {split: Counter(row.label for row in concept.examples[split]) for split in SPLITS}
    labels = list(dict.fromkeys(label for split in SPLITS for label in counts[split]))
    return tables.rows(
        ("rows", *SPLITS),
        [(label, *(counts[split][label] for split in SPLITS)) for label in labels],
    )
