"""`retouch edit`: its options are the fields of `EditConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.options import CONFIG, ConfigFile, configured, out_dir, require_model
from retouch.core.config_file import resolve
from retouch.core.errors import ConfigError
from retouch.core.launch import launched_rank
from retouch.core.options import OPTIONS, flatten
from retouch.core.types import Event

if TYPE_CHECKING:
    from rich.console import Console

    from retouch.result import EditResult

EPILOG = "Options override --config, which overrides the concept's tuned settings."


@configured(*CONFIG)
def edit(
    settings: dict[str, Any],
    config: ConfigFile = None,
    output_dir: Annotated[
        Path | None, out_dir("the run directory (default: runs/CONCEPT-DIRECTION-NUMBER)")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="continue a run that was interrupted")
    ] = None,
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
        flags = {option.path: option.flag for option in OPTIONS} | {"model": "MODEL"}
        extra = [flags[path] for path in flatten(settings)]
        extra += [f"--{name}" for name, value in (("config", config), ("out", output_dir)) if value]
        if extra:
            raise ConfigError(
                "`resume` continues a run with the configuration that it was started with.",
                f"Leave out {', '.join(extra)}.",
                code="options-exclusive",
            )
    else:
        hint = "For example: retouch edit pocket --concept safety, or retouch edit --resume RUN."
        require_model(settings, config, hint)
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
    from rich.console import Console

    from retouch.cli.loading import quiet_libraries
    from retouch.cli.progress import EditProgress
    from retouch.core import serialization

    silent = launched_rank() > 0
    console = Console(quiet=quiet or as_json or silent, highlight=False)
    progress = EditProgress(console)

    def on_event(event: Event) -> None:
        if as_json and not silent:
            typer.echo(serialization.to_json(serialization.plain_event(event)))
        else:
            progress(event)

    # Errors in the options are reported before the seconds that importing the libraries takes.
    resolve(settings, where="the options")
    quiet_libraries()
    from retouch import pipeline
    from retouch.concepts.registry import load_concept

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
        typer.echo(_interrupted(path), err=True)
        raise typer.Exit(130) from None
    if silent:
        return result
    if as_json:
        metrics = [serialization.to_plain(record) for record in result.metrics]
        typer.echo(serialization.to_json({"run": str(result.path), "metrics": metrics}))
    elif quiet:
        typer.echo(str(result.path))
    else:
        _show(result, console, next_steps)
    return result


def _show(result: EditResult, console: Console, next_steps: bool) -> None:
    from retouch.cli import tables

    console.print()
    if result.metrics:
        console.print(tables.scores(result.metrics))
    if next_steps:
        path = result.path
        typer.echo(f"The run: {path}")
        typer.echo("Next:")
        lines = [
            (
                f"retouch chat {result.config.model} --adapter {path}",
                "chat with both models, side by side",
            ),
            (f"open {path / 'report.html'}", "the report, in any browser"),
            (f"retouch export {path} --out {path.name}-adapter", "the adapter for PEFT"),
        ]
        tables.commands(console, lines)


def _interrupted(path: Path | None) -> str:
    if path is not None and (path / "config.yaml").exists():
        return f"Interrupted. Continue with: retouch edit --resume {path}"
    return "Interrupted before anything was written."
