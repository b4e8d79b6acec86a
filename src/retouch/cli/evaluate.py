"""`retouch evaluate`: the metrics of a model, or of a model before and after an edit."""

from __future__ import annotations

from typing import Annotated, Any, cast

from retouch.cli import output
from retouch.cli.loading import resolve_base
from retouch.cli.options import LOAD, Adapter, AsJson, MaxNewTokens, OutFile, configured, option
from retouch.core.errors import ConfigError
from retouch.core.types import SPLITS, Split


@configured(*LOAD)
def evaluate(
    settings: dict[str, Any],
    adapter: Adapter = None,
    concept: Annotated[
        list[str] | None,
        option("NAME|FILE", "a concept; may be repeated (default: all for the model)"),
    ] = None,
    split: Annotated[str, option("test|validation", "the split to measure on")] = "test",
    limit: Annotated[
        int | None, option("N", "maximum number of examples per metric", min=1)
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    as_json: AsJson = False,
    output_file: OutFile = None,
) -> None:
    """Measure refusals under attack, over-refusal, truthfulness, bias, tone and drift."""
    if split not in SPLITS or split == "train":
        raise ConfigError(
            f"`split` must be test or validation, got {split!r}.", code="split-unknown"
        )
    folder, config = resolve_base(settings, adapter)
    with output.show_progress(quiet=as_json) as progress:
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
    output.write_json(result.metrics, as_json=as_json, file=output_file)
    if not as_json:
        title = config.model + (f" with {adapter}" if adapter else "")
        output.console().print(output.scores(result.metrics, title=title))
