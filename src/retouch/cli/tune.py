"""`retouch tune`: good settings of a method, chosen on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import quiet_libraries
from retouch.cli.options import LOAD, configured, out_dir, require_model
from retouch.core.config_file import resolve
from retouch.core.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console

    from retouch.comparison.study import Study, Trial

TASK = ("concept", "direction", "seed", "allow_weakening", "data.num_examples", "train.max_drift")


@configured(*LOAD, *TASK)
def tune(
    settings: dict[str, Any],
    method: Annotated[str, typer.Option(metavar="NAME", help="the method")],
    trials: Annotated[int, typer.Option(metavar="N", help="maximum number of trials")] = 40,
    minutes: Annotated[
        float, typer.Option(metavar="X", help="no trial starts after this total time of trials")
    ] = 10.0,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="maximum validation examples per metric")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="save the best settings, for `compare --tuned`"),
    ] = None,
    output_dir: Annotated[
        Path | None,
        out_dir(
            "the output directory (default: runs/tune-CONCEPT-DIRECTION-METHOD); an unfinished "
            "study in it is continued"
        ),
    ] = None,
) -> None:
    """Search a method's settings for a large effect at a small drift; trial 1 has the defaults."""
    from rich.console import Console

    from retouch.cli.progress import EditProgress

    require_model(settings, None, "For example: retouch tune pocket --method retouch.")
    config = resolve(settings, where="the options")
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, highlight=False))
    try:
        with progress:
            from retouch.comparison.tune import tune as run_study
            from retouch.comparison.tuned_settings import save_settings

            study = run_study(
                config.model,
                config.concept,
                config.direction,
                method,
                num_examples=config.data.num_examples,
                trials=trials,
                minutes=minutes,
                seed=config.seed,
                max_drift=config.train.max_drift,
                limit=limit,
                output_dir=output_dir,
                load_config=config.load,
                allow_weakening=config.allow_weakening,
                on_event=progress,
            )
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command continues after the last trial.", err=True)
        raise typer.Exit(130) from None
    _show(Console(highlight=False), study)
    if save is not None and study.best_trial is not None:
        save_settings(save, method, study.best_trial.settings, study.cost())
        typer.echo(f"Saved to {save}: retouch compare {config.model} --tuned {save}")


def _show(console: Console, study: Study) -> None:
    from retouch.cli import tables

    best = study.best_trial
    if best is None:
        raise RunError(
            f"All {len(study.trials)} trials failed; the last one: {study.trials[-1].reason}",
            code="study-failed",
        )

    def row(trial: Trial) -> list[object]:
        settings = ", ".join(f"{name} {_text(value)}" for name, value in trial.settings.items())
        drift, effect = trial.point
        mark = "best" if trial is best else ""
        return [trial.number + 1, f"{effect:.3f}", f"{drift:.4f}", settings, mark]

    front = study.pareto_front
    trials = front if best in front else [*front, best]
    console.print("The Pareto front on the validation split:")
    console.print(tables.plain(["trial", "effect", "drift", "settings", ""], map(row, trials)))
    failed = sum(trial.state == "failed" for trial in study.trials)
    typer.echo(f"{study.cost()}{f'; {failed} failed' if failed else ''}: {study.path}")


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
