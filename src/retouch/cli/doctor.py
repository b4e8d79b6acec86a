"""`retouch doctor`: check an edit and estimate its memory and time before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import quiet_libraries, resolve_with_model
from retouch.cli.options import CONFIG, AsJson, ConfigFile, configured, out_dir
from retouch.core.units import size_text, time_text

if TYPE_CHECKING:
    from rich.console import RenderableType

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
    # Errors in the options are reported before the seconds that importing the libraries takes.
    resolve_with_model(settings, "retouch doctor pocket --concept safety", config)
    quiet_libraries()
    from retouch.pipeline import configure
    from retouch.preflight.check import run_preflight

    report = run_preflight(configure(settings, config), output_dir=output_dir)
    if as_json:
        output.write_json(report.to_plain(), as_json=True)
    else:
        _print_report(report)
    if report.errors:
        raise typer.Exit(1)


def _print_report(report: PreflightReport) -> None:
    console = output.console()
    model = f"{report.config.model}: {report.architecture or 'unknown architecture'}"
    if report.num_parameters:
        model += f", {report.num_parameters:,} parameters, {report.num_layers} layers"
    if report.hardware is not None:
        model += f", {report.dtype} on {report.hardware.label}"
    console.print(model, style="bold", soft_wrap=True)
    if report.layers is not None:
        trainable = f"{report.trainable_parameters:,} trainable parameters"
        console.print(f"{report.layers}; {trainable}", soft_wrap=True)
    if report.estimate is not None:
        console.print(_estimate_tables(report.estimate))
    output.print_findings(report.findings)
    number = len(report.errors)
    errors = f"{number} error{'s prevent' if number > 1 else ' prevents'} the edit."
    console.print(errors if number else "The edit can run.", style="bold")


def _estimate_tables(estimate: Estimate) -> RenderableType:
    """Memory and time, side by side."""
    from rich.columns import Columns

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
    parts = [output.plain(("memory (estimate)", ""), rows)]
    if estimate.seconds is not None:
        times = [(phase.name, time_text(phase.seconds)) for phase in estimate.phases]
        total = ("total", time_text(estimate.seconds))
        parts.append(output.plain(("time (estimate)", ""), [*times, total]))
    return Columns(parts, padding=(0, 4))
