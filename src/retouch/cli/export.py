"""`retouch export`: an edit in the file formats of PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from retouch.cli import output
from retouch.cli.loading import quiet_libraries
from retouch.cli.options import configured, option, out_dir
from retouch.core.config_file import resolve
from retouch.core.run_dir import RunDir


@configured("model", "allow_weakening", "load.trust_remote_code", model_first=False)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    output_dir: Annotated[Path, out_dir("a new folder")],
    settings: dict[str, Any],
    format: Annotated[
        str, option("peft|merged", "the adapter, or a whole model with it merged in")
    ] = "peft",
) -> None:
    """Write a run's adapter, or its model with the adapter merged in, with the model card.

    For a merged model, `--model` is the model that the run edits.
    """
    quiet_libraries()
    given = resolve(settings, where="the options")
    from retouch.reporting.export import export as export_run

    path = export_run(
        RunDir.open(run),
        cast(Any, format),
        output_dir,
        model=given.model if "model" in settings else None,
        trust_remote_code=given.load.trust_remote_code,
        allow_weakening=given.allow_weakening,
    )
    output.echo(f"Exported: {path}")
    output.echo(f"The model card {path / 'README.md'} tells how to load it.")
