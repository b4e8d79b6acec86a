"""`retouch concept`: the built-in concepts, and checks of a concept's data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from retouch.cli.options import Command
from retouch.concepts.concept import Concept
from retouch.core.errors import DataError
from retouch.core.types import DIRECTIONS, SPLITS

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(
    help="List the built-in concepts, show one, or check your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE", help="a built-in concept, or a CSV, JSONL, Parquet or YAML file"
    ),
]


@app.command("list", cls=Command, short_help="List the built-in concepts.")
def list_() -> None:
    """List the built-in concepts."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.concepts.registry import builtin_names, load_concept

    concepts = [load_concept(name) for name in builtin_names()]
    rows = [(c.name, c.title, ", ".join(c.directions) or "none (metrics only)") for c in concepts]
    Console(highlight=False).print(tables.plain(("concept", "title", "directions"), rows))


@app.command("show", cls=Command, short_help="Show a concept's directions, examples and metrics.")
def show(name: Name) -> None:
    """Show a concept: directions, number of examples, metrics, and one example of each label."""
    from rich.console import Console
    from rich.text import Text

    from retouch.cli import tables
    from retouch.concepts.registry import load_concept

    concept = load_concept(name)
    console = Console(highlight=False)
    console.print(Text(f"{concept.name}: {concept.title}", style="bold"))
    console.print(Text(concept.description), soft_wrap=True)
    console.print(_directions(concept))
    console.print(_counts(concept))
    if concept.metrics:
        heads = ("suite", "metric", "scorer", "labels", "better")
        rows = (
            (one.suite, one.metric, one.scorer, ", ".join(one.labels), one.better)
            for one in concept.metrics
        )
        console.print(tables.plain(heads, rows))
    labels: set[str] = set()
    for example in concept.examples["train"]:
        if example.label not in labels:
            labels.add(example.label)
            label = Text(f"{example.label}: ", style="dim")
            console.print(label.append_text(tables.turns(example.prompt)))
            if example.response:
                console.print(Text(f"  -> {example.response}"))
    console.print(Text(f"data, SHA-256: {concept.hash}", style="dim"), soft_wrap=True)


@app.command("check", cls=Command, short_help="Check a concept's data.")
def check(name: Name) -> None:
    """Report problems of a concept's data; the exit code is 3 where there is an error."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.concepts.registry import load_concept
    from retouch.concepts.validate import validate

    concept = load_concept(name)
    findings = validate(concept)
    tables.findings(Console(highlight=False), findings)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise DataError(
            f"{concept.name} has {errors} error{'s' if errors > 1 else ''}, listed above.",
            "Correct its examples and check again.",
            code="concept-invalid",
        )
    total = sum(len(examples) for examples in concept.examples.values())
    typer.echo(f"{concept.name} is valid: {total} examples.")


def _directions(concept: Concept) -> RenderableType:
    from retouch.cli import tables

    rows = [
        (
            direction,
            ", ".join(spec.source),
            ", ".join(spec.target),
            ", ".join(spec.retain),
            "weakens safety" if direction == concept.weakens else "",
        )
        for direction in DIRECTIONS
        if (spec := concept.directions.get(direction))
    ]
    return tables.plain(("direction", "source", "target", "retain", ""), rows)


def _counts(concept: Concept) -> RenderableType:
    from retouch.cli import tables

    counts = {split: Counter(one.label for one in concept.examples[split]) for split in SPLITS}
    labels = dict.fromkeys(label for split in SPLITS for label in counts[split])
    rows = [(label, *(counts[split][label] for split in SPLITS)) for label in labels]
    return tables.plain(("examples", *SPLITS), rows)
