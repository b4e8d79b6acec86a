"""`retouch compare`: Retouch and its baselines on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from retouch.cli.loading import quiet_libraries
from retouch.cli.options import (
    LOAD,
    configured,
    out_dir,
    require_model,
    split_names,
    split_numbers,
)
from retouch.core.config_file import resolve

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from retouch.comparison.compare import Comparison
    from retouch.comparison.table import Table

WIDE = 110  # minimum width of a terminal for the whole table, in columns


@configured(*LOAD, "concept", "direction", "allow_weakening", "data.source_filter")
def compare(
    settings: dict[str, Any],
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="the methods to compare (default: all)")
    ] = None,
    num_examples: Annotated[
        str,
        typer.Option(metavar="N,...", help="labelled source examples, and as many target examples"),
    ] = "128",
    seeds: Annotated[int, typer.Option(metavar="N", help="number of seeds, from 0 on")] = 5,
    tuned: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tuned settings (default: the built-in ones, if any)"),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="concept|all", help="the metrics of the concept, or of all built-in concepts"
        ),
    ] = "concept",
    attacks: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="also run these attacks of `retouch robustness`"),
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="maximum number of examples per metric")
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", help="number of worker processes that run at the same time")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|HOST:PORT",
            help="run on a Ray cluster: start one on this machine, or connect to one",
        ),
    ] = None,
    cpus_per_job: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPUs of a Ray job (default: an equal share)"),
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="GPUs of a Ray job, such as 0.5 (default: 1 if the device is a GPU)"
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        out_dir(
            "the output directory (default: runs/compare-CONCEPT-DIRECTION); an unfinished "
            "comparison in it is continued"
        ),
    ] = None,
) -> None:
    """Train all methods on the same examples; measure effect and side effects on the test split."""
    from rich.console import Console

    from retouch.cli.progress import EditProgress

    counts = split_numbers("num_examples", num_examples)
    require_model(settings, None, "For example: retouch compare pocket --concept safety.")
    config = resolve(settings, where="the options")
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, highlight=False))
    try:
        with progress:
            from retouch.comparison.compare import compare as run_comparison

            comparison = run_comparison(
                config.model,
                concept=config.concept,
                direction=config.direction,
                methods=None if methods is None else split_names(methods),
                seeds=seeds,
                num_examples=counts,
                tuned=tuned,
                metrics=cast(Any, metrics),
                attacks=split_names(attacks),
                output_dir=output_dir,
                jobs=jobs,
                ray=ray,
                cpus_per_job=cpus_per_job,
                gpus_per_job=gpus_per_job,
                limit=limit,
                load_config=config.load,
                allow_weakening=config.allow_weakening,
                source_filter=config.data.source_filter,
                on_event=progress,
            )
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command continues after the finished tasks.", err=True)
        raise typer.Exit(130) from None
    _show(Console(highlight=False), comparison)
    typer.echo(f"Tables and plots: {comparison.path / 'compare.md'}")


def _show(console: Console, comparison: Comparison) -> None:
    for table in comparison.tables(main=console.width < WIDE):
        console.print(_rich_table(table))
        for number, note in enumerate(table.notes, start=1):
            console.print(f"  {number}  {note}", markup=False)


def _rich_table(table: Table) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    from retouch.cli.tables import BOX

    title = f"{table.num_examples} examples"
    made = RichTable(title=title, title_justify="left", box=BOX, padding=(0, 1, 0, 0))
    for i, name in enumerate(table.head):
        made.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(entry.text, style="bold green" if entry.best else "") for entry in row))
    return made
