"""`retouch concept`: the concepts that are built in, and a check of one's own."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from retouch.core.errors import DataError
from retouch.core.types import DIRECTIONS, SPLITS, Concept

app = typer.Typer(
    help="List the built-in concepts, show one, or check your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="a built-in concept, or a file")]


@app.command("list")
def list_() -> None:
    """List the built-in concepts."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.concepts.catalog import builtin_names, load_concept

    concepts = [load_concept(name) for name in builtin_names()]
    console = Console(highlight=False)
    console.print(
        tables.rows(
            ("concept", "what it is", "directions"),
            [(c.name, c.title, ", ".join(c.sides) or "none (data for others)") for c in concepts],
        )
    )


@app.command("show")
def show(name: Name) -> None:
    """Show a concept: its directions, its rows, its metrics, and an example of each label."""
    from rich.console import Console
    from rich.text import Text

    from retouch.cli import tables
    from retouch.concepts.catalog import load_concept

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
    for row in concept.rows["train"]:
        if row.label not in seen:
            seen.add(row.label)
            console.print(Text(f"{row.label}: ", style="dim").append_text(tables.turns(row.prompt)))
            if row.response:
                console.print(Text(f"  -> {row.response}"))
    console.print(Text(f"data, SHA-256: {concept.hash}", style="dim"), soft_wrap=True)


@app.command("check")
def check(name: Name) -> None:
    """Check that a concept can be edited and measured; exits with 3 where it cannot."""
    from rich.console import Console

    from retouch.concepts.catalog import load_concept

    concept = load_concept(name)
    console = Console(highlight=False)
    console.print(_rows(concept))
    faults = find_faults(concept)
    if faults:
        raise DataError(f"{concept.name} has faults: " + "; ".join(faults) + ".")
    for warning in find_doubts(concept):
        typer.echo(f"Mind: {warning}.")
    typer.echo(f"{concept.name} is sound: {sum(map(len, concept.rows.values()))} rows.")


def find_faults(concept: Concept) -> list[str]:
    """What keeps a concept from being edited: sides without rows, entities in two splits."""
    faults = []
    if not concept.sides:
        faults.append("it has no direction to edit in")
    for direction, side in concept.sides.items():
        for split in ("train", "validation"):
            for part in ("source", "target"):
                if not concept.select(split, getattr(side, part)):
                    faults.append(f"`{direction}` has no {part} rows in its {split} split")
    entities = {split: {r.entity for r in concept.rows[split] if r.entity} for split in SPLITS}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            shared = sorted(entities[one] & entities[other])
            if shared:
                faults.append(f"{len(shared)} entities are in {one} and {other}, as {shared[0]!r}")
    return faults


def find_doubts(concept: Concept) -> list[str]:
    """What can be edited but deserves a look: few rows, nothing to hold, unmeasured."""
    doubts = []
    for direction, side in concept.sides.items():
        few = {
            part: len(concept.select("train", getattr(side, part))) for part in ("source", "target")
        }
        doubts += [
            f"`{direction}` has only {n} {part} rows to train on"
            for part, n in few.items()
            if n < 16
        ]
        if not concept.select("train", side.hold):
            doubts.append(f"`{direction}` holds nothing, so the model may drift")
        if len(concept.select("test", side.source)) < 50:
            doubts.append(f"`{direction}` has few test rows, so the intervals will be wide")
    if not concept.metrics:
        doubts.append("it declares no metrics")
    return doubts


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
            if (side := concept.sides.get(direction))
        ],
    )


def _rows(concept: Concept) -> object:
    from retouch.cli import tables

    counts = {split: Counter(row.label for row in concept.rows[split]) for split in SPLITS}
    labels = list(dict.fromkeys(label for split in SPLITS for label in counts[split]))
    return tables.rows(
        ("rows", *SPLITS),
        [(label, *(counts[split][label] for split in SPLITS)) for label in labels],
    )
