"""`retouch merge`: several edits of one model in one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import (
    Device,
    Dtype,
    quiet_libraries,
)
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.core.types import Record, StageEvent

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = 200


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run directories")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new folder for the adapter")],
    weights: Annotated[
        str | None, typer.Option(metavar="N,...", help="one for each run (default: 1 each)")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=2, metavar="N", help="rows a metric at the most")
    ] = ROWS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print the records as JSON")] = False,
) -> None:
    """Add up the edits of several runs, exactly, and see what each does alone and in the sum.

    The sum is a PEFT adapter of its own, whose rank is the sum of theirs.
    """
    from rich.console import Console

    from retouch.cli.progress import EditProgress
    from retouch.core import serialization
    from retouch.core.run_dir import RunDir, atomic_folder, check_free, find_adapter

    shares = _weights(weights, len(runs))
    configs = [RunDir.open(run).config() for run in runs]
    _check_same(runs, configs)
    for run in runs:
        find_adapter(run)
    check_free(out)
    quiet_libraries()
    progress = EditProgress(Console(stderr=True, quiet=as_json, highlight=False))
    with progress:
        from retouch.concepts.registry import load_concept
        from retouch.evaluation.robustness import effects
        from retouch.models import adapters
        from retouch.models.adapter_merging import compose as add_up
        from retouch.models.load import load

        asked = list(
            {
                (config.concept, config.direction): (load_concept(config.concept), config.direction)
                for config in configs
            }.values()
        )
        first = configs[0]
        progress(StageEvent("load", f"loading {first.model}"))
        editable = load(
            first.model,
            revision=first.load.revision,
            device=device,
            dtype=dtype,
            trust_remote_code=first.load.trust_remote_code,
            chat_template=first.load.chat_template,
        )
        found: dict[str, list[Record]] = {}
        singles = [(str(run), [run], [1.0]) for run in runs]
        for name, parts, amounts in (*singles, ("the sum", list(runs), shares)):
            add_up(editable, parts, amounts)
            found[name] = effects(
                editable,
                asked,
                limit=limit,
                progress=lambda what, done, total, name=name: progress(  # type: ignore[misc]
                    StageEvent("measure", f"{name}: {what}", done, total)
                ),
            )
            if name == "the sum":
                with atomic_folder(out) as folder:
                    adapters.save(editable, folder)
            adapters.detach(editable)
    if as_json:
        values = {
            name: [serialization.to_plain(record) for record in records]
            for name, records in found.items()
        }
        typer.echo(serialization.to_json({"adapter": str(out), "metrics": values}, indent=2))
        return
    Console(highlight=False).print(_table(found))
    typer.echo(f"The adapter: {out}")


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights {text} are no numbers.", "Write one for each run, as in 1,0.5."
        ) from None
    if len(found) != count:
        raise ConfigError(
            f"There are {count} runs and {len(found)} weights.", "Write one weight for each run."
        )
    return found


def _check_same(runs: list[Path], configs: list[EditConfig]) -> None:
    for run, config in zip(runs, configs, strict=True):
        if (config.model, config.load.revision) != (configs[0].model, configs[0].load.revision):
            raise ConfigError(
                f"{run} edits {config.model}, and {runs[0]} edits {configs[0].model}.",
                "Only edits of one and the same model add up.",
            )


def _table(found: dict[str, list[Record]]) -> RenderableType:
    """One line for the base, each edit and the sum; one column a metric."""
    from retouch.cli import tables
    from retouch.core.formatting import show_value, words

    def shown(records: list[Record], base: bool) -> list[Any]:
        scores = [record.before if base else record.after or record.before for record in records]
        return [show_value(s.value, r.unit) for s, r in zip(scores, records, strict=True)]

    some = next(iter(found.values()))
    return tables.rows(
        ["", *(words(record.metric) for record in some)],
        [
            ["base", *shown(some, base=True)],
            *([name, *shown(records, base=False)] for name, records in found.items()),
        ],
    )
