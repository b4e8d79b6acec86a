"""`retouch robustness`: the robustness_records attacks that an edit is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import (
    Device,
    Dtype,
    ModelOrRun,
    Quantized,
    Revision,
    TrustRemoteCode,
    direction_of,
    quiet_libraries,
    resolve_base,
)
from retouch.core.types import StageEvent

if TYPE_CHECKING:
    from rich.console import Console

    from retouch.evaluation.robustness import RobustnessReport


def robustness(
    model: ModelOrRun = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR|RUN", help="the edit: an adapter, or a run's"),
    ] = None,
    concept: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="the concept that was edited")
    ] = "safety",
    direction: Annotated[
        str, typer.Option(metavar="raise|lower", help="the edit's direction")
    ] = "raise",
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="of prefill, suffix, latent, tamper, strength_sweep, quality (default: all that fit)",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="rows a question (default: what takes a minute)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="draws requests and attacks")] = 0,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantized = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the figures as JSON, too")
    ] = None,
) -> None:
    """Attack a model's refusals, train them away, turn the edit up and down; read its prose.

    With an adapter the base is asked the same attacks beside it.
    """
    from rich.console import Console

    from retouch.cli.progress import EditProgress
    from retouch.core import serialization
    from retouch.core.run_dir import atomic_write

    side = direction_of(direction)
    folder, settings = resolve_base(model, adapter, revision)
    quiet_libraries()
    console = Console(highlight=False)
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch.concepts.registry import load_concept
        from retouch.evaluation import robustness as asking
        from retouch.models.load import load

        names = None if attacks is None else [name.strip() for name in attacks.split(",")]
        asking.check_attacks(names or ())
        about = load_concept(concept)
        editable = load(
            settings.name,
            revision=settings.revision,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code or settings.trust_remote_code,
            chat_template=settings.chat_template,
            # FinetuningResult merges the edit into the weights, which quantised ones do not take.
            quantize=quantize or "none",
            adapter=folder,
        )
        found = asking.robustness(
            editable,
            about,
            names,
            limit=limit,
            seed=seed,
            direction=side,
            progress=lambda what, done, total: progress(
                StageEvent("robustness", what, done, total)
            ),
        )
    values = _plain(found)
    text = serialization.to_json(values, indent=2)
    if out is not None:
        atomic_write(out, text + "\n")
    if as_json:
        typer.echo(text)
        return
    title = settings.name + (f" with {adapter}" if adapter else "")
    _show(console, found, title)
    left = [name for name in asking.ATTACKS if name not in found.seconds]
    if names is None and left:
        typer.echo(f"Not asked, since this model or concept has nothing to ask: {', '.join(left)}.")


def _show(console: Console, found: RobustnessReport, title: str) -> None:
    from retouch.cli import tables
    from retouch.core.formatting import show_interval, show_value, words

    if found.records:
        console.print(tables.scores(found.records, title=title))
    for along in dict.fromkeys(curve.along for curve in found.curves):
        curves = [curve for curve in found.curves if curve.along == along]
        for at in dict.fromkeys(tuple(x for x, _ in curve.points) for curve in curves):
            alike = [curve for curve in curves if tuple(x for x, _ in curve.points) == at]
            # One line a point: with intervals, a line a metric would not fit a small terminal.
            console.print(
                tables.rows(
                    [along, *(f"{curve.suite}: {words(curve.metric)}" for curve in alike)],
                    (
                        [
                            f"{x:g}",
                            *(
                                f"{show_value(score.value, curve.unit)}"
                                f"  ({show_interval(score, curve.unit)})"
                                for curve in alike
                                for score in (curve.points[i][1],)
                            ),
                        ]
                        for i, x in enumerate(at)
                    ),
                )
            )
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.seconds.items())
    typer.echo(f"Took: {took}")


def _plain(found: RobustnessReport) -> dict[str, Any]:
    from retouch.core import serialization
    from retouch.evaluation.curve import from_curve

    return {
        "records": [serialization.to_plain(record) for record in found.records],
        "curves": [from_curve(curve) for curve in found.curves],
        "seconds": found.seconds,
    }
