"""`retouch tune`: good settings of a method, on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from rich.console import Console

    from retouch.comparison.study import Study


def tune(
    model: BareModel,
    method: Annotated[str, typer.Option(metavar="NAME", help="the method")],
    concept: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="a built-in concept, or a pack")
    ] = "safety",
    direction: Annotated[
        str, typer.Option(metavar="raise|lower", help="raise the concept or lower it")
    ] = "raise",
    labels: Annotated[
        int, typer.Option(metavar="N", help="labelled rows, of source and of target each")
    ] = 128,
    trials: Annotated[int, typer.Option(metavar="N", help="at most so many trials in all")] = 40,
    minutes: Annotated[
        float, typer.Option(metavar="X", help="no trial begins after so many minutes of trials")
    ] = 10.0,
    guard: Annotated[
        float, typer.Option(metavar="X", help="the drift that the choice allows, nats a token")
    ] = 0.01,
    seed: Annotated[int, typer.Option(metavar="N", help="decides rows and trials")] = 0,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="validation rows a metric at the most")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write the chosen settings there: `compare --tuned`"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="where to (default: runs/search-CONCEPT-DIRECTION-METHOD); goes on there",
        ),
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_weakening: AllowWeakening = None,
) -> None:
    """Try a method's settings: much effect, little drift; the first trial has the defaults."""
    from rich.console import Console

    from retouch.cli.progress import EditProgress

    side = direction_of(direction)
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, highlight=False))
    try:
        with progress:
            from retouch.comparison import tune as searching
            from retouch.comparison import tuned_settings

            done = searching.search(
                model,
                concept,
                side,
                method,
                labels=labels,
                trials=trials,
                minutes=minutes,
                seed=seed,
                guard=guard,
                limit=limit,
                out=out,
                on_event=progress,
                allow_weakening=allow_weakening,
                revision=revision,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on after the last whole trial.", err=True)
        raise typer.Exit(130) from None
    _show(Console(highlight=False), done)
    if keep is not None and done.chosen is not None:
        tuned_settings.keep(keep, method, done.chosen.settings, done.spent())
        typer.echo(f"Kept in {keep}: retouch compare {model} --tuned {keep}")


def _show(console: Console, done: Study) -> None:
    from retouch.cli.tables import rows
    from retouch.comparison.trial import pareto_front

    chosen = done.chosen
    if chosen is None:
        typer.echo(f"All {len(done.trials)} trials failed; the last: {done.trials[-1].reason}")
        raise typer.Exit(6)

    def line(trial: Any) -> list[object]:
        settings = ", ".join(f"{name} {_write(value)}" for name, value in trial.settings.items())
        mark = "chosen" if trial is chosen else ""
        return [trial.number + 1, f"{trial.effect:.3f}", f"{trial.drift:.4f}", settings, mark]

    best = pareto_front(done.trials)
    console.print("The Pareto pareto_front, on the validation split:")
    console.print(
        rows(
            ["trial", "effect", "drift", "settings", ""],
            (line(trial) for trial in (best if chosen in best else [*best, chosen])),
        )
    )
    failed = sum(trial.state == "failed" for trial in done.trials)
    typer.echo(f"{done.spent()}{f'; {failed} failed' if failed else ''}: {done.path}")


def _write(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
