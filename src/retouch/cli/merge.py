"""`retouch merge`: several edits of one model in one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import resolve_with_model
from retouch.cli.options import LOAD, AsJson, configured, option, out_dir, split_numbers
from retouch.core.formatting import show_value, words


@configured(*LOAD, "allow_weakening", model_first=False)
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run directories")],
    output_dir: Annotated[Path, out_dir("a new folder for the adapter")],
    settings: dict[str, Any],
    weights: Annotated[str | None, option("X,...", "weight of each run (default: 1)")] = None,
    limit: Annotated[int, option("N", "maximum number of examples per metric", min=2)] = 200,
    as_json: AsJson = False,
) -> None:
    """Add the edits of several runs and measure each of them alone and in the sum.

    The sum is exact: a PEFT adapter whose rank is the sum of the ranks.
    """
    shares = None if weights is None else split_numbers("weights", weights, float)
    config = resolve_with_model(settings, f"retouch merge {runs[0]} RUN --model NAME --out DIR")
    with output.show_progress(quiet=as_json) as progress:
        from retouch import merging

        result = merging.merge(
            runs,
            output_dir,
            shares,
            model=config.model,
            limit=limit,
            allow_weakening=config.allow_weakening,
            load_config=config.load,
            on_event=progress,
        )
    if as_json:
        values = {"metrics": result.metrics, "overlaps": result.overlaps}
        output.write_json({"adapter": result.path, **values}, as_json=True)
        return
    first = next(iter(result.metrics.values()))
    # One line for the base, each edit and the sum; one column per metric.
    rows = [["base", *(show_value(record.before.value, record.unit) for record in first)]]
    for name, records in result.metrics.items():
        measured = [(record.after or record.before, record.unit) for record in records]
        rows.append([name, *(show_value(score.value, unit) for score, unit in measured)])
    heads = ["", *(words(record.metric) for record in first)]
    output.console().print(output.plain(heads, rows))
    names = [name for name in result.metrics if name != "merged"]
    pairs = zip(names, result.overlaps, strict=True)
    cosines = [[name, *(f"{cosine:.3f}" for cosine in row)] for name, row in pairs]
    output.console().print(output.plain(["cosine of the updates", *names], cosines))
    output.echo(f"The adapter: {result.path}")
