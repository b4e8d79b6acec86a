"""`retouch compare`: Retouch beside what a user would do instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from retouch.cli.loading import (
    AllowWeakening,
    BareModel,
    Device,
    Dtype,
    Revision,
    TrustRemoteCode,
    direction_of,
    quiet_libraries,
)
from retouch.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from retouch.comparison.compare import Comparison
    from retouch.comparison.table import Table

WIDE = 110  # columns of a terminal from which on the whole table is legible


def compare(
    model: BareModel,
    concept: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="a built-in concept, or a pack")
    ] = "safety",
    direction: Annotated[
        str, typer.Option(metavar="raise|lower", help="raise the concept or lower it")
    ] = "raise",
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="of the methods (default: all)")
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="N,...", help="labelled rows, of source and of target each")
    ] = "128",
    seeds: Annotated[int, typer.Option(metavar="N", help="how many seeds, from 0 on")] = 5,
    source: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="training rows to move in place of the concept's"),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tuned settings (default: those that ship, if any)"),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(metavar="own|all", help="the concept's metrics, or of all built-in concepts"),
    ] = "own",
    robustness: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="also ask these attacks of `retouch robustness`"),
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="rows a metric at the most")
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", help="points made at once, each in a process of its own")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|HOST:PORT",
            help="make them on Ray: start a cluster on this machine, or join one",
        ),
    ] = None,
    cpus_per_job: Annotated[
        int | None,
        typer.Option(metavar="N", help="what each reserves there (default: shared out)"),
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        typer.Option(metavar="X", help="likewise, e.g. 0.5 (default: 1 if the device is a GPU)"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="where to (default: runs/compare-CONCEPT-DIRECTION); goes on there"
        ),
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_weakening: AllowWeakening = None,
) -> None:
    """Give every method the same rows, and measure effect and side effects on the test split."""
    from rich.console import Console

    from retouch.cli.progress import EditProgress

    counts = numbers("--labels", labels)
    side = direction_of(direction)
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, highlight=False))
    try:
        with progress:
            from retouch.comparison import compare as comparing
            from retouch.methods import registry

            done = comparing.compare(
                model,
                concept,
                side,
                methods=registry.IDS if methods is None else names(methods),
                seeds=seeds,
                labels=counts,
                tuned=tuned,
                metrics=cast(Any, metrics),
                robustness=names(robustness),
                out=out,
                jobs=jobs,
                ray=ray,
                cpus_per_job=cpus_per_job,
                gpus_per_job=gpus_per_job,
                limit=limit,
                on_event=progress,
                allow_weakening=allow_weakening,
                source=source,
                revision=revision,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from the points that are made.", err=True)
        raise typer.Exit(130) from None
    console = Console(highlight=False)
    _show(console, done)
    typer.echo(f"Tables and picture: {done.path / 'compare.md'}")


def numbers(option: str, text: str) -> list[int]:
    """The numbers of a list such as `8,16`.

    Raises:
        ConfigError: one is none; names the option.
    """
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise ConfigError(
            f"`{option}`: {text!r} are not whole numbers.", f"Write them as in {option} 8,16,128."
        ) from None


def names(text: str) -> list[str]:
    """The parts of a list such as `none,retouch`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _show(console: Console, done: Comparison) -> None:
    from retouch.comparison.table import columns, make_table
    from retouch.methods import registry

    shown = columns(done.objective, done.grid.concept, done.grid.direction)
    if console.width < WIDE:
        shown = [column for column in shown if column.main]
    titles = {id: registry.get_method(id).title for id in done.grid.methods}
    for labels in done.grid.labels:
        table = make_table(labels, done.lines, shown, done.paired_tests, titles)
        console.print(_rich(table, f"{labels} labels"))
        for number, note in enumerate(table.notes, start=1):
            console.print(f"  {number}  {note}", markup=False)


def _rich(table: Table, title: str) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    from retouch.cli.tables import BOX

    made = RichTable(title=title, title_justify="left", box=BOX, padding=(0, 1, 0, 0))
    for at, name in enumerate(table.head):
        made.add_column(name, justify="right" if at else "left", no_wrap=False, overflow="fold")
    for line in table.lines:
        made.add_row(
            *(Text(point.text, style="bold green" if point.best else "") for point in line)
        )
    return made
