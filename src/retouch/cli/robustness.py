"""`retouch robustness`: robustness attacks against an edited model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from retouch.cli import output
from retouch.cli.loading import resolve_base
from retouch.cli.options import LOAD, Adapter, AsJson, OutFile, configured, option, split_names
from retouch.concepts.registry import concept_for_model
from retouch.core.formatting import show_score, words
from retouch.core.types import StageEvent

if TYPE_CHECKING:
    from retouch.evaluation.robustness import RobustnessReport
    from retouch.evaluation.statistics import Curve

# A run's quantisation is not reused: fine-tuning attacks merge the edit into the weights.
REUSED = ("revision", "chat_template", "chat_template_kwargs", "chat_template_time")


@configured(*LOAD, "concept", "direction", "seed")
def robustness(
    settings: dict[str, Any],
    adapter: Adapter = None,
    attacks: Annotated[
        str | None,
        option(
            "NAME,...",
            "of prefill, gcg, latent, finetune, finetune_sweep, strip, strength, quality "
            "(default: all that apply to the concept and the model)",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        option(
            "N", "maximum number of examples per attack (default: chosen for each attack)", min=2
        ),
    ] = None,
    as_json: AsJson = False,
    output_file: OutFile = None,
) -> None:
    """Attack a model's refusals, fine-tune them away, vary the edit's strength, check the text.

    With an adapter the base model is attacked in the same way, for comparison.
    """
    output.check_metrics_file(output_file)
    folder, config = resolve_base(settings, adapter, REUSED)
    with output.show_progress(quiet=as_json) as progress:
        from retouch.evaluation.robustness import ATTACKS, check_attacks, run_robustness
        from retouch.models.load import load, model_name

        names = None if attacks is None else split_names(attacks)
        check_attacks(names or ())
        concept = concept_for_model(config.concept, model_name(config.model))
        concept.report_notes(progress)
        progress(StageEvent("load", f"loading {config.model}"))
        editable = load(config.model, config.load, adapter=folder, on_event=progress)
        report = run_robustness(
            editable,
            concept,
            names,
            limit=limit,
            seed=config.seed,
            direction=config.direction,
            progress=lambda *step: progress(StageEvent("attack", *step)),
        )
    values = {name: getattr(report, name) for name in ("records", "curves", "seconds")}
    output.write_json(values, as_json=as_json, file=output_file)
    if as_json:
        return
    _print_report(report, config.model + (f" with {adapter}" if adapter else ""))
    skipped = [name for name in ATTACKS if name not in report.seconds]
    if names is None and skipped:
        output.echo(f"Not applicable to this model or concept: {', '.join(skipped)}.")


def _print_report(report: RobustnessReport, title: str) -> None:
    console = output.console()
    if report.records:
        console.print(output.scores(report.records, title=title))
    by_axis: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in report.curves:
        by_axis.setdefault((curve.along, *(x for x, _ in curve.points)), []).append(curve)
    for (along, *positions), curves in by_axis.items():
        # One line per position: with intervals, a line per metric does not fit a small terminal.
        rows = [
            [f"{x:g}", *(show_score(curve.points[i][1], curve.unit) for curve in curves)]
            for i, x in enumerate(positions)
        ]
        heads = [f"{curve.suite}: {words(curve.metric)}" for curve in curves]
        console.print(output.plain([along, *heads], rows))
    timings = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    for note in report.notes:
        console.print(note, markup=False)
    output.echo(f"Time: {timings}")
