"""`retouch compare`: Retouch and its baselines on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from retouch.cli import output
from retouch.cli.loading import resolve_with_model
from retouch.cli.options import (
    LOAD,
    DataDir,
    MaxNewTokens,
    Suites,
    configured,
    option,
    out_dir,
    split_assignments,
    split_names,
    split_numbers,
)

if TYPE_CHECKING:
    from retouch.comparison.compare import Comparison

WIDE = 110  # minimum width of a terminal for the whole table, in columns


@configured(*LOAD, "concept", "direction", "allow_weakening", "data.source_filter")
def compare(
    settings: dict[str, Any],
    methods: Annotated[
        str | None, option("NAME,...", "the methods to compare (default: all)")
    ] = None,
    num_examples: Annotated[
        str, option("N,...", "labelled source examples, and as many target examples")
    ] = "128",
    seeds: Annotated[int, option("N", "number of seeds, from 0 on")] = 5,
    more_seeds: Annotated[
        str, option("NAME=N,...", "number of seeds of single methods, in place of --seeds")
    ] = "",
    tuned: Annotated[
        Path | None, option("FILE", "tuned settings (default: the built-in ones, if any)")
    ] = None,
    metrics: Annotated[
        str,
        option(
            "objective|concept|all",
            "effect and drift, all metrics of the concept, or those of all built-in concepts",
        ),
    ] = "concept",
    suite: Suites = None,
    data_dir: DataDir = None,
    attacks: Annotated[
        str, option("NAME,...", "also run these attacks of `retouch robustness`")
    ] = "",
    limit: Annotated[
        int | None, option("N", "maximum number of examples per metric, and per suite")
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    samples: Annotated[int, option("N", "responses of every method to keep, for samples.md")] = 0,
    save_adapters: Annotated[
        bool, typer.Option("--save-adapters", help="keep the adapters of methods that have one")
    ] = False,
    jobs: Annotated[int, option("N", "number of worker processes that run at the same time")] = 1,
    ray: Annotated[
        str | None,
        option(
            "local|auto|HOST:PORT",
            "run on a Ray cluster: start one on this machine, or connect to one",
        ),
    ] = None,
    cpus_per_job: Annotated[
        int | None, option("N", "CPUs of a Ray job (default: an equal share)")
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        option("X", "GPUs of a Ray job, such as 0.5 (default: 1 if the device is a GPU)"),
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
    counts = split_numbers("num_examples", num_examples)
    config = resolve_with_model(settings, "retouch compare pocket --concept pocket-safety")
    interrupted = "Interrupted. The same command continues after the finished tasks."
    with output.show_progress(interrupted=interrupted) as progress:
        from retouch.comparison.compare import compare as run_comparison

        comparison = run_comparison(
            config.model,
            concept=config.concept,
            direction=config.direction,
            methods=None if methods is None else split_names(methods),
            seeds=seeds,
            more_seeds=split_assignments("more_seeds", split_names(more_seeds)),
            num_examples=counts,
            tuned=tuned,
            metrics=cast(Any, metrics),
            suites=suite or (),
            data_dir=data_dir,
            attacks=split_names(attacks),
            samples=samples,
            save_adapters=save_adapters,
            output_dir=output_dir,
            jobs=jobs,
            ray=ray,
            cpus_per_job=cpus_per_job,
            gpus_per_job=gpus_per_job,
            limit=limit,
            max_new_tokens=max_new_tokens,
            load_config=config.load,
            allow_weakening=config.allow_weakening,
            source_filter=config.data.source_filter,
            on_event=progress,
        )
    _print_tables(comparison)
    output.echo(f"Tables and plots: {comparison.path / 'compare.md'}")


def _print_tables(comparison: Comparison) -> None:
    console = output.console()
    for table in comparison.tables(main=console.width < WIDE):
        made = output.table(title=f"{table.num_examples} examples", padding=(0, 1, 0, 0))
        for i, name in enumerate(table.head):
            made.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            entries = [
                (entry.text + entry.mark, "bold green" if entry.best else "") for entry in row
            ]
            made.add_row(*map(output.styled, entries))
        console.print(made)
        for number, note in enumerate(table.notes, start=1):
            console.print(f"  {number}  {note}")
