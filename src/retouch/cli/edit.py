"""`retouch edit`: its options are the fields of `EditConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import quiet_libraries, resolve_with_model
from retouch.cli.options import CONFIG, FLAGS, ConfigFile, configured, option, out_dir
from retouch.concepts.registry import load_concept
from retouch.core.errors import ConfigError
from retouch.core.options import flatten
from retouch.core.process import launched_rank
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import Event, StageEvent

if TYPE_CHECKING:
    from retouch.result import EditResult


@configured(*CONFIG)
def edit(
    settings: dict[str, Any],
    config: ConfigFile = None,
    output_dir: Annotated[
        Path | None, out_dir("the run directory (default: runs/CONCEPT-DIRECTION-NUMBER)")
    ] = None,
    resume: Annotated[Path | None, option("RUN", "continue a run that was interrupted")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print only the path of the run")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object per event, then the metrics")
    ] = False,
) -> None:
    """Edit one concept inside a model and measure what changed."""
    if quiet and as_json:
        raise ConfigError("`quiet` and `as_json` exclude each other.", code="options-exclusive")
    if resume is not None:
        extra = ["MODEL" if path == "model" else FLAGS[path] for path in flatten(settings)]
        extra += [f"--{name}" for name, value in (("config", config), ("out", output_dir)) if value]
        if extra:
            raise ConfigError(
                "`resume` continues a run with the configuration that it was started with.",
                f"Leave out {', '.join(extra)}.",
                code="options-exclusive",
            )
    else:
        # Errors in the options are reported before the seconds that importing the libraries takes.
        example = "retouch edit pocket --concept safety, or retouch edit --resume RUN"
        resolve_with_model(settings, example, config)
    run(settings, config, output_dir, resume, quiet=quiet, as_json=as_json)


def run(
    settings: dict[str, Any],
    config: Path | None = None,
    output_dir: Path | None = None,
    resume: Path | None = None,
    *,
    quiet: bool = False,
    as_json: bool = False,
    next_steps: bool = True,
) -> EditResult:
    """Make or resume an edit and show its progress and its result."""
    from retouch.cli.progress import EditProgress

    silent = launched_rank() > 0
    console = output.console(quiet=quiet or as_json or silent)
    progress = EditProgress(console)

    def on_event(event: Event) -> None:
        if as_json and not silent:
            kind = "stage" if isinstance(event, StageEvent) else "round"
            typer.echo(to_json({"event": kind, **to_plain(event)}))
        else:
            progress(event)

    quiet_libraries()
    from retouch import pipeline

    path = resume
    try:
        with progress:
            if path is not None:
                result = pipeline.resume(path, on_event=on_event)
            else:
                resolved = pipeline.configure(settings, config)
                path = output_dir or pipeline.choose_path(resolved)
                concept = load_concept(resolved.concept)
                result = pipeline.run_edit(resolved, concept, path, on_event=on_event)
    except KeyboardInterrupt:
        message = "Interrupted before anything was written."
        if path is not None and (path / "config.yaml").exists():
            message = f"Interrupted. Continue with: retouch edit --resume {path}"
        raise KeyboardInterrupt(message) from None
    if as_json and not silent:
        typer.echo(to_json(to_plain({"run": result.path, "metrics": result.metrics})))
    elif quiet and not silent:
        typer.echo(str(result.path))
    elif not silent:
        console.print()
        if result.metrics:
            console.print(output.scores(result.metrics))
        if next_steps:
            path = result.path
            chat = f"retouch chat {result.config.model} --adapter {path}"
            output.print_next_steps(
                path,
                (chat, "chat with both models, side by side"),
                (f"open {path / 'report.html'}", "the report, in any browser"),
                (f"retouch export {path} --out {path.name}-adapter", "the adapter for PEFT"),
            )
    return result
