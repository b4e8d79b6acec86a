"""`retouch tune`: good settings of a method, chosen on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from retouch.cli import output
from retouch.cli.loading import resolve_with_model
from retouch.cli.options import LOAD, configured, option, out_dir, split_assignments
from retouch.core.errors import RunError

if TYPE_CHECKING:
    from retouch.comparison.study import Study, Trial

TASK = ("concept", "direction", "seed", "allow_weakening", "data.num_examples", "train.max_drift")


@configured(*LOAD, *TASK)
def tune(
    settings: dict[str, Any],
    method: Annotated[str, option("NAME", "the method")],
    trials: Annotated[int, option("N", "maximum number of trials")] = 40,
    minutes: Annotated[
        float, option("X", "no trial starts after this total time of trials")
    ] = 10.0,
    limit: Annotated[int | None, option("N", "maximum validation examples per metric")] = None,
    fixed: Annotated[
        list[str] | None,
        option("NAME=VALUE", "a setting that every trial has; may be repeated", "--set"),
    ] = None,
    save: Annotated[
        Path | None, option("FILE", "save the best settings, for `compare --tuned`")
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
    config = resolve_with_model(settings, "retouch tune pocket --method retouch")
    interrupted = "Interrupted. The same command continues after the last trial."
    with output.show_progress(interrupted=interrupted) as progress:
        from retouch.comparison.tune import tune as run_study
        from retouch.comparison.tuned_settings import check_settings_file, save_settings

        if save is not None:
            check_settings_file(save)
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
            fixed=split_assignments("set", fixed or ()),
            output_dir=output_dir,
            load_config=config.load,
            allow_weakening=config.allow_weakening,
            on_event=progress,
        )
    best = study.best_trial
    if best is None:
        raise RunError(
            f"All {len(study.trials)} trials failed; the last one: {study.trials[-1].reason}",
            code="study-failed",
        )
    _print_front(study, best)
    if save is not None:
        save_settings(save, method, study.best_settings, study.cost())
        output.echo(f"Saved to {save}: retouch compare {config.model} --tuned {save}")


def _print_front(study: Study, best: Trial) -> None:
    def row(trial: Trial) -> list[object]:
        settings = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.settings.items()
        )
        drift, effect = trial.point
        mark = "best" if trial is best else ""
        return [trial.number + 1, f"{effect:.3f}", f"{drift:.4f}", settings, mark]

    front = study.pareto_front
    trials = front if best in front else [*front, best]
    output.echo("The Pareto front on the validation split:")
    heads = ["trial", "effect", "drift", "settings", ""]
    output.console().print(output.plain(heads, map(row, trials)))
    failed = sum(trial.state == "failed" for trial in study.trials)
    output.echo(f"{study.cost()}{f'; {failed} failed' if failed else ''}: {study.path}")
