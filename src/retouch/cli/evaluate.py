"""`retouch evaluate`: the validation_score card of a model, or of a model before and after an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from retouch.cli.loading import (
    Device,
    DeviceMemory,
    Dtype,
    ModelOrRun,
    Quantized,
    Revision,
    TrustRemoteCode,
    quiet_libraries,
    resolve_base,
)
from retouch.core.errors import ConfigError
from retouch.core.types import SPLITS, Split


def evaluate(
    model: ModelOrRun = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR|RUN", help="compare with this adapter, or a run's"),
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="may be repeated (default: all that are built in)"),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="test|validation", help="the rows to measure on")
    ] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="rows a metric at the most")
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantized = None,
    device_memory: DeviceMemory = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the records as JSON")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the records as JSON, too")
    ] = None,
) -> None:
    """Measure a model: refusals under attack, over-refusal, truth, bias, tone and the rest."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.cli.progress import EditProgress
    from retouch.core import serialization
    from retouch.core.run_dir import atomic_write

    if split not in SPLITS or split == "train":
        raise ConfigError(f"There is no --split {split} to measure on.", "Take test or validation.")
    folder, settings = resolve_base(model, adapter, revision)
    quiet_libraries()
    # Progress goes to the other stream, so that the table or the JSON can be redirected.
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch import pipeline
        from retouch.models.load import load

        editable = load(
            settings.name,
            revision=settings.revision,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code or settings.trust_remote_code,
            chat_template=settings.chat_template,
            quantize=quantize or settings.quantize,
            device_memory=settings.device_bytes(device_memory),
            adapter=folder,
        )
        result = pipeline.evaluate_model(
            editable,
            concepts=concept or (),
            split=cast(Split, split),
            limit=limit,
            on_event=progress,
        )
    text = serialization.to_json(
        [serialization.to_plain(record) for record in result.records], indent=2
    )
    if out is not None:
        atomic_write(out, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        title = settings.name + (f" with {adapter}" if adapter else "")
        Console(highlight=False).print(tables.scores(result.records, title=title))
