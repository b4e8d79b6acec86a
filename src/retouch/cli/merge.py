"""`retouch merge`: several edits of one model in one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import quiet_libraries
from retouch.cli.options import LOAD, AsJson, configured, out_dir, split_numbers
from retouch.core.config_file import resolve
from retouch.core.types import Record

if TYPE_CHECKING:
    from rich.console import RenderableType


@configured(*(path for path in LOAD if path != "model"))
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run directories")],
    output_dir: Annotated[Path, out_dir("a new folder for the adapter")],
    settings: dict[str, Any],
    weights: Annotated[
        str | None, typer.Option(metavar="X,...", help="weight of each run (default: 1)")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=2, metavar="N", help="maximum number of examples per metric")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Add the edits of several runs and measure each of them alone and in the sum.

    The sum is exact: a PEFT adapter whose rank is the sum of the ranks.
    """
    from rich.console import Console

    from retouch.cli.progress import EditProgress
    from retouch.core import serialization

    shares = None if weights is None else split_numbers("weights", weights, float)
    load_config = resolve(settings, where="the options").load
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch import merging

        result = merging.merge(
            runs, output_dir, shares, limit=limit, load_config=load_config, on_event=progress
        )
    if as_json:
        metrics = {
            name: [serialization.to_plain(record) for record in records]
            for name, records in result.metrics.items()
        }
        values = {"adapter": str(result.path), "metrics": metrics}
        typer.echo(serialization.to_json(values, indent=2))
        return
    Console(highlight=False).print(_table(result.metrics))
    typer.echo(f"The adapter: {result.path}")


def _table(metrics: dict[str, list[Record]]) -> RenderableType:
    """One line for the base, each edit and the sum; one column per metric."""
    from retouch.cli import tables
    from retouch.core.formatting import show_value, words

    first = next(iter(metrics.values()))
    rows = [["base", *(show_value(record.before.value, record.unit) for record in first)]]
    for name, records in metrics.items():
        scores = [(record.after or record.before, record.unit) for record in records]
        rows.append([name, *(show_value(score.value, unit) for score, unit in scores)])
    return tables.plain(["", *(words(record.metric) for record in first)], rows)
