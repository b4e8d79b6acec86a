"""`retouch concept`: the built-in concepts, and checks of a concept's data."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from retouch.cli import output
from retouch.cli.options import Command
from retouch.concepts.registry import builtin_names, load_concept
from retouch.concepts.validate import validate
from retouch.core.errors import DataError
from retouch.core.types import DIRECTIONS, SPLITS

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
    concepts = [load_concept(name) for name in builtin_names()]
    rows = [(c.name, c.title, ", ".join(c.directions) or "none (metrics only)") for c in concepts]
    output.console().print(output.plain(("concept", "title", "directions"), rows))


@app.command("show", cls=Command, short_help="Show a concept's directions, examples and metrics.")
def show(name: Name) -> None:
    """Show a concept: directions, number of examples, metrics, and one example of each label."""
    concept = load_concept(name)
    console = output.console()
    console.print(f"{concept.name}: {concept.title}", style="bold")
    console.print(concept.description, soft_wrap=True)
    rows: list[tuple[object, ...]] = []
    for direction in DIRECTIONS:
        if spec := concept.directions.get(direction):
            labels = (", ".join(part) for part in (spec.source, spec.target, spec.retain))
            note = "weakens safety" if direction == concept.weakens else ""
            rows.append((direction, *labels, note))
    console.print(output.plain(("direction", "source", "target", "retain", ""), rows))
    counts = [Counter(example.label for example in concept.examples[split]) for split in SPLITS]
    rows = [(label, *(count[label] for count in counts)) for label in sum(counts, Counter())]
    console.print(output.plain(("examples", *SPLITS), rows))
    if concept.metrics:
        heads = ("suite", "metric", "scorer", "labels", "better")
        rows = [
            (one.suite, one.metric, one.scorer, ", ".join(one.labels), one.better)
            for one in concept.metrics
        ]
        console.print(output.plain(heads, rows))
    seen: set[str] = set()
    for example in concept.examples["train"]:
        if example.label not in seen:
            seen.add(example.label)
            console.print(
                output.styled((f"{example.label}: ", "dim")) + output.turns(example.prompt)
            )
            if example.response:
                console.print(f"  -> {example.response}")
    console.print(f"data, SHA-256: {concept.hash}", style="dim", soft_wrap=True)


@app.command("check", cls=Command, short_help="Check a concept's data.")
def check(name: Name) -> None:
    """Report problems of a concept's data; the exit code is 3 where there is an error."""
    concept = load_concept(name)
    findings = validate(concept)
    output.print_findings(findings)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise DataError(
            f"{concept.name} has {errors} error{'s' if errors > 1 else ''}, listed above.",
            "Correct its examples and check again.",
            code="concept-invalid",
        )
    total = sum(len(examples) for examples in concept.examples.values())
    typer.echo(f"{concept.name} is valid: {total} examples.")
