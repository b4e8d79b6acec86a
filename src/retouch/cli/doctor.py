"""`retouch doctor`: check an edit and estimate its memory and time before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import quiet_libraries, resolve_with_model
from retouch.cli.options import CONFIG, AsJson, ConfigFile, configured, out_dir
from retouch.core.formatting import score_columns
from retouch.core.units import size_text, time_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retouch.contrast.report import ContrastReport
    from retouch.preflight.check import PreflightReport
    from retouch.preflight.estimate import Estimate


@configured(*CONFIG)
def doctor(
    settings: dict[str, Any],
    config: ConfigFile = None,
    output_dir: Annotated[Path, out_dir("where the run would be written")] = Path("runs"),
    contrast: Annotated[
        bool,
        typer.Option(
            "--contrast", help="also load the model and check what the edit would move towards"
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an edit and estimate its memory and time, without loading any weights.

    With `--contrast` the model is loaded, and its responses to source and target are compared. The
    exit code is 0 if the edit can run, and 1 if a problem prevents it.
    """
    # Errors in the options are reported before the seconds that importing the libraries takes.
    resolve_with_model(settings, "retouch doctor pocket --concept pocket-safety")
    quiet_libraries()
    from retouch import pipeline
    from retouch.preflight.check import run_preflight

    resolved = pipeline.configure(settings, config)
    report = run_preflight(resolved, output_dir=output_dir)
    if not as_json:
        _print_report(report)
    compared = None
    if contrast and not report.errors:
        with output.show_progress(quiet=as_json) as progress:
            compared = pipeline.check_contrast(config=resolved, on_event=progress)
        if not as_json:
            _print_contrast(compared)
    if as_json:
        values = report.to_plain()
        if contrast:
            values["contrast"] = None if compared is None else compared.to_plain()
        output.write_json(values, as_json=True)
    if report.errors or (compared is not None and compared.errors):
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


def _print_contrast(report: ContrastReport) -> None:
    """The measurements, the samples and the findings."""
    console = output.console()
    title = f"contrast: {report.concept}, {report.direction}"
    made = output.table("", title=title, pad_edge=False)
    for name in ("value", "95 % interval", "n"):
        made.add_column(name, justify="right", no_wrap=True)
    for name, score, unit in report.rows:
        made.add_row(name, *score_columns(score, unit), str(score.n))
    console.print(made)
    for sample in report.samples:
        mark = ("yes  ", "green") if sample.desired else ("no   ", "dim")
        response = sample.response + ("…" if sample.truncated else "")
        line = (f"{sample.set:>7}  ", "cyan"), mark, (f"{sample.prompt}\n", "dim"), f"{'':14}"
        console.print(output.styled(*line, " ".join(response.split()) or "(empty)"))
    output.print_findings(report.findings)
    stops = "The edit has nothing to move towards." if report.errors else "The edit can be trained."
    console.print(stops, style="bold")


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
