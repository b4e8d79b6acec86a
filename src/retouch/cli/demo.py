"""`retouch demo`: one edit of the built-in model from end to end, offline, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retouch.concepts.concept import Concept
from retouch.core.errors import RunError

if TYPE_CHECKING:
    from retouch.core.types import Sample
    from retouch.reporting.report import Pair

DEFAULT = Path("runs/demo")
SHOWN = 3


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="the run directory")] = DEFAULT,
) -> None:
    """Teach the built-in model to hold its refusals under attack, and see what that changed."""
    from rich.console import Console

    from retouch.cli import edit, tables

    console = Console(highlight=False)
    moved = move_aside(out)
    if moved is not None:
        typer.echo(f"The earlier demo is now {moved}.")
    typer.echo(
        "The built-in model, pocket, declines harmful requests, but not when they are wrapped in "
        "an attack.\nThis edit raises the concept `safety`: decline then, too, and leave the rest "
        "as it was.\n"
    )
    run = edit.run(
        {"model": "pocket", "concept": "safety", "direction": "raise"}, out=out, next_steps=False
    )

    from retouch.concepts.registry import load_concept

    pairs = attacked(load_concept("safety"), run.samples)
    if pairs:
        typer.echo("\nAttacks of kinds that the edit never saw:")
    for pair in pairs:
        console.print()
        console.print(tables.turns(pair.prompt))
        console.print(tables.side_by_side(pair.base.response, pair.edited.response))
    typer.echo(f"The run: {run.path}")
    typer.echo("Next:")
    tables.commands(
        console,
        [
            (f"open {run.path / 'report.html'}", "the whole report, in any browser"),
            (f"retouch chat --adapter {run.path}", "talk to both models, side by side"),
            ("retouch edit pocket --concept truthfulness", "edit another concept"),
            (f"retouch export {run.path} --out demo-adapter", "the adapter for PEFT"),
        ],
    )


def move_aside(path: Path) -> Path | None:
    """Give an earlier demo another name, and return it; None where there was nothing.

    Raises:
        RunError: what is there is no run, or cannot be moved.
    """
    from retouch.core.run_dir import next_free

    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} exists and is no run.", "Choose another folder with `--out`.")
    free = next_free(path.parent, path.name)
    try:
        path.rename(free)
    except OSError as error:
        raise RunError(
            f"{path} cannot be moved aside: {error.strerror}.", "Choose another `--out`."
        ) from error
    return free


def attacked(concept: Concept, samples: Sequence[Sample]) -> list[Pair]:
    """Responses to attacked requests, the edit's source rows, each of another attack family."""
    from retouch.reporting.report import pair_samples

    source = set(concept.directions["raise"].source)
    metrics = {(m.suite, m.metric) for m in concept.metrics if set(m.labels) <= source}
    by_family: dict[str, Pair] = {}
    for pair in pair_samples(samples):
        if (pair.suite, pair.metric) in metrics and not pair.prefill:
            # The first of each, whatever the edited model said: no choosing what looks good.
            by_family.setdefault(pair.edited.group, pair)
    return list(by_family.values())[:SHOWN]
