"""`retouch doctor`: check an edit and estimate its memory and time before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import quiet_libraries
from retouch.cli.options import CONFIG, AsJson, ConfigFile, configured, out_dir, require_model
from retouch.core.config_file import resolve
from retouch.core.units import size_text, time_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from retouch.preflight.check import PreflightReport
    from retouch.preflight.estimate import Estimate


@configured(*CONFIG)
def doctor(
    settings: dict[str, Any],
    config: ConfigFile = None,
    output_dir: Annotated[Path, out_dir("where the run would be written")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check an edit and estimate its memory and time, without loading any weights.

    The exit code is 0 if the edit can run, and 1 if a problem prevents it.
    """
    from rich.console import Console

    from retouch.core import serialization

    require_model(settings, config, "For example: retouch doctor pocket --concept safety.")
    # Errors in the options are reported before the seconds that importing the libraries takes.
    resolve(settings, where="the options")
    quiet_libraries()
    from retouch.pipeline import configure
    from retouch.preflight.check import run_preflight

    report = run_preflight(configure(settings, config), output_dir=output_dir)
    if as_json:
        typer.echo(serialization.to_json(report.to_plain(), indent=2))
    else:
        _show(report, Console(highlight=False))
    if report.errors:
        raise typer.Exit(1)


def _show(report: PreflightReport, console: Console) -> None:
    """Print the model, the layers, the estimates, the findings and the result."""
    from rich.text import Text

    from retouch.cli import tables

    console.print(Text(_model_line(report), style="bold"), soft_wrap=True)
    if report.layers is not None:
        trainable = f"; {_count_text(report.trainable_parameters)} trainable parameters"
        console.print(Text(f"{report.layers}{trainable}"), soft_wrap=True)
    if report.estimate is not None:
        console.print(_estimate_tables(report.estimate))
    tables.findings(console, report.findings)
    number = len(report.errors)
    errors = f"{number} error{'s prevent' if number > 1 else ' prevents'} the edit."
    console.print(Text(errors if number else "The edit can run.", style="bold"))


def _model_line(report: PreflightReport) -> str:
    text = f"{report.config.model}: {report.architecture or 'unknown architecture'}"
    if report.num_parameters:
        count = _count_text(report.num_parameters)
        text += f", {count} parameters, {report.num_layers} layers"
    if report.hardware is not None:
        text += f", {report.dtype} on {report.hardware.label}"
    return text


def _estimate_tables(estimate: Estimate) -> RenderableType:
    """Memory and time, side by side."""
    from rich.columns import Columns

    from retouch.cli import tables

    memory, streaming = estimate.memory, estimate.streaming
    sizes = [
        ("weights", memory.weights),
        ("generation", memory.generation),
        ("cached states", memory.cached_states),
        ("adapter, Adam", memory.adapter),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("peak", memory.peak),
        ("available", estimate.available),
        ("streamed layers", streaming.layer_bytes if streaming else None),
        ("states in memory", memory.host_states or None),
        ("states on disk", memory.disk_states or None),
        ("run directory", estimate.disk),
    ]
    rows = [(name, size_text(size)) for name, size in sizes if size is not None]
    parts = [tables.plain(("memory (estimate)", ""), rows)]
    if estimate.seconds is not None:
        times = [(phase.name, time_text(phase.seconds)) for phase in estimate.phases]
        total = ("total", time_text(estimate.seconds))
        parts.append(tables.plain(("time (estimate)", ""), [*times, total]))
    return Columns(parts, padding=(0, 4))


def _count_text(number: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:,}"
