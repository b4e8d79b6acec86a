"""`retouch evaluate`: the metrics of a model, or of a model before and after an edit."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from retouch.cli.loading import quiet_libraries, resolve_base
from retouch.cli.options import LOAD, Adapter, AsJson, OutFile, configured
from retouch.core.errors import ConfigError
from retouch.core.types import SPLITS, Split


@configured(*LOAD)
def evaluate(
    settings: dict[str, Any],
    adapter: Adapter = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE", help="a concept; may be repeated (default: all built-in concepts)"
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="test|validation", help="the split to measure on")
    ] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="maximum number of examples per metric")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="maximum length of a response, in tokens")
    ] = 32,
    as_json: AsJson = False,
    output_file: OutFile = None,
) -> None:
    """Measure refusals under attack, over-refusal, truthfulness, bias, tone and drift."""
    from rich.console import Console

    from retouch.cli import tables
    from retouch.cli.progress import EditProgress
    from retouch.core import serialization
    from retouch.core.atomic import atomic_write

    if split not in SPLITS or split == "train":
        raise ConfigError(
            f"`split` must be test or validation, got {split!r}.", code="split-unknown"
        )
    folder, config = resolve_base(settings, adapter)
    quiet_libraries()
    # Progress goes to stderr, so that the table or the JSON can be redirected.
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch import pipeline

        result = pipeline.evaluate(
            config.model,
            adapter=folder,
            concepts=concept or (),
            split=cast(Split, split),
            limit=limit,
            max_new_tokens=max_new_tokens,
            load_config=config.load,
            on_event=progress,
        )
    records = [serialization.to_plain(record) for record in result.metrics]
    text = serialization.to_json(records, indent=2)
    if output_file is not None:
        atomic_write(output_file, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        title = config.model + (f" with {adapter}" if adapter else "")
        Console(highlight=False).print(tables.scores(result.metrics, title=title))
