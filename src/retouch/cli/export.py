"""`retouch export`: hand an edit over to those who do not have Retouch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retouch.core.errors import ConfigError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new folder")],
    format: Annotated[
        str,
        typer.Option(metavar="peft|merged", help="the adapter alone, or a whole model with it"),
    ] = "peft",
) -> None:
    """Write a run's adapter, or the model with it merged in, with the model card."""
    from retouch.cli.loading import quiet_libraries
    from retouch.core.run_dir import RunDir
    from retouch.reporting import export as delivery

    if format not in delivery.FORMATS:
        raise ConfigError(
            f"There is no --format {format}.", f"Choose of: {', '.join(delivery.FORMATS)}."
        )
    if format == "merged":
        quiet_libraries()
    where = delivery.export(RunDir.open(run), format, out)
    typer.echo(f"Exported: {where}")
    typer.echo(f"Its card, {where / 'README.md'}, says how to load it.")
