"""`retouch robustness`: robustness attacks against an edited model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import quiet_libraries, resolve_base
from retouch.cli.options import LOAD, Adapter, AsJson, OutFile, configured, split_names
from retouch.core.types import Score, StageEvent

if TYPE_CHECKING:
    from rich.console import Console

    from retouch.evaluation.curve import Curve
    from retouch.evaluation.robustness import RobustnessReport

# A run's quantisation and memory limit are not reused: fine-tuning attacks merge the edit into the
# weights.
REUSED = ("revision", "trust_remote_code", "chat_template")


@configured(*LOAD, "concept", "direction", "seed")
def robustness(
    settings: dict[str, Any],
    adapter: Adapter = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="of prefill, gcg, latent, finetune, strength, quality "
            "(default: all that apply to the concept and the model)",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="maximum number of examples per attack (default: chosen for each attack)",
        ),
    ] = None,
    as_json: AsJson = False,
    output_file: OutFile = None,
) -> None:
    """Attack a model's refusals, fine-tune them away, vary the edit's strength, check the text.

    With an adapter the base model is attacked in the same way, for comparison.
    """
    from rich.console import Console

    from retouch.cli.progress import EditProgress
    from retouch.core import serialization
    from retouch.core.atomic import atomic_write

    folder, config = resolve_base(settings, adapter, REUSED)
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch.concepts.registry import load_concept
        from retouch.evaluation.robustness import ATTACKS, check_attacks, run_robustness
        from retouch.models.load import load

        names = None if attacks is None else split_names(attacks)
        check_attacks(names or ())
        concept = load_concept(config.concept)
        progress(StageEvent("load", f"loading {config.model}"))
        editable = load(config.model, config.load, adapter=folder)
        report = run_robustness(
            editable,
            concept,
            names,
            limit=limit,
            seed=config.seed,
            direction=config.direction,
            progress=lambda *step: progress(StageEvent("attack", *step)),
        )
    values = {
        "records": [serialization.to_plain(record) for record in report.records],
        "curves": [serialization.to_plain(curve) for curve in report.curves],
        "seconds": report.seconds,
    }
    text = serialization.to_json(values, indent=2)
    if output_file is not None:
        atomic_write(output_file, text + "\n")
    if as_json:
        typer.echo(text)
        return
    title = config.model + (f" with {adapter}" if adapter else "")
    _show(Console(highlight=False), report, title)
    skipped = [name for name in ATTACKS if name not in report.seconds]
    if names is None and skipped:
        typer.echo(f"Not applicable to this model or concept: {', '.join(skipped)}.")


def _show(console: Console, report: RobustnessReport, title: str) -> None:
    from retouch.cli import tables
    from retouch.core.formatting import words

    if report.records:
        console.print(tables.scores(report.records, title=title))
    by_axis: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in report.curves:
        by_axis.setdefault((curve.along, *(x for x, _ in curve.points)), []).append(curve)
    for (along, *positions), curves in by_axis.items():
        # One line per position: with intervals, a line per metric does not fit a small terminal.
        rows = [
            [f"{x:g}", *(_score_text(curve.points[i][1], curve.unit) for curve in curves)]
            for i, x in enumerate(positions)
        ]
        heads = [f"{curve.suite}: {words(curve.metric)}" for curve in curves]
        console.print(tables.plain([along, *heads], rows))
    timings = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    typer.echo(f"Time: {timings}")


def _score_text(score: Score, unit: str) -> str:
    from retouch.core.formatting import show_interval, show_value

    return f"{show_value(score.value, unit)}  ({show_interval(score, unit)})"
