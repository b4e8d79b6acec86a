"""`retouch export`: an edit in the file formats of PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from retouch.cli.loading import quiet_libraries
from retouch.cli.options import option, out_dir
from retouch.core.run_dir import RunDir
from retouch.reporting.export import export as export_run


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    output_dir: Annotated[Path, out_dir("a new folder")],
    format: Annotated[
        str, option("peft|merged", "the adapter, or a whole model with it merged in")
    ] = "peft",
) -> None:
    """Write a run's adapter, or its model with the adapter merged in, with the model card."""
    if format == "merged":
        quiet_libraries()
    path = export_run(RunDir.open(run), cast(Any, format), output_dir)
    typer.echo(f"Exported: {path}")
    typer.echo(f"The model card {path / 'README.md'} tells how to load it.")
