"""`retouch doctor`: what an edit would take on this machine and what would stop it, beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.loading import (
    AllowWeakening,
    BareModel,
    Revision,
    TrustRemoteCode,
    quiet_libraries,
)
from retouch.core.units import size_text, time_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from retouch.preflight.check import Diagnosis
    from retouch.preflight.estimate import Outlook

STYLES = {"error": "red", "warning": "yellow", "ok": "green"}
Blocks = Annotated[str | None, typer.Option(metavar="N,...", help="as of `retouch edit`")]
Number = Annotated[int | None, typer.Option(metavar="N", help="as of `retouch edit`")]


def doctor(
    model: BareModel,
    concept: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="what to edit")] = None,
    direction: Annotated[
        str | None, typer.Option(metavar="raise|lower", help="the edit's direction")
    ] = None,
    layers: Blocks = None,
    read_layers: Blocks = None,
    modules: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="as of `retouch edit`")
    ] = None,
    rank: Number = None,
    labels: Number = None,
    retain: Number = None,
    batch: Number = None,
    rounds: Number = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="all|own|nothing", help="what is measured before and after"),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="as of `retouch edit`: blocks beyond it come by"),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="none|8bit|4bit", help="bits of the frozen weights")
    ] = None,
    at_once: Number = None,
    cache_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="as of `retouch edit`")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="as of `retouch edit`")
    ] = None,
    revision: Revision = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="auto|float32|bfloat16|float16", help="of the editable weights"),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_weakening: AllowWeakening = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="settings from a YAML or TOML file")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="where the run would be")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print the diagnosis as JSON")] = False,
) -> None:
    """Progress what an edit would take here and what would stop it; no weights are editable.

    Exits with 0 if it would run, with 1 if something would stop it.
    """
    from rich.console import Console

    from retouch.core import serialization
    from retouch.core.config_file import resolve

    named = {"layers": layers, "read_layers": read_layers, "modules": modules}
    given: dict[str, Any] = {name: _parts(text) for name, text in named.items() if text is not None}
    asked = {
        "model": model,
        "concept": concept,
        "direction": direction,
        "rank": rank,
        "labels": labels,
        "retain": retain,
        "batch": batch,
        "rounds": rounds,
        "measure": measure,
        "device_memory": device_memory,
        "quantize": quantize,
        "at_once": at_once,
        "cache_memory": cache_memory,
        "chat_template": chat_template,
        "revision": revision,
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code or None,
        "allow_weakening": allow_weakening,
    }
    given |= {name: value for name, value in asked.items() if value is not None}
    # What is wrong with the options is said before the seconds that the libraries take to load.
    resolve(given, where="the options")
    quiet_libraries()
    from retouch.pipeline import configure
    from retouch.preflight.check import examine

    found = examine(configure(given, config), out=out)
    if as_json:
        typer.echo(serialization.to_json(found.plain(), indent=2))
    else:
        _show(found, Console(highlight=False))
    if found.stops:
        raise typer.Exit(1)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _show(found: Diagnosis, console: Console) -> None:
    """What was recognised, what is foreseen, what was found; the result comes last."""
    from rich.text import Text

    console.print(Text(_recognised(found), style="bold"), soft_wrap=True)
    if found.layers is not None:
        console.print(Text(_blocks(found)), soft_wrap=True)
    if found.outlook is not None:
        console.print(_foreseen(found.outlook, found.seconds))
    for finding in found.findings:
        line = Text(f"{finding.level:>5}  ", style=STYLES[finding.level])
        line.append(f"{finding.code}: {finding.message}", style="default")
        if finding.hint:
            line.append(f" {finding.hint}", style="dim")
        console.print(line, soft_wrap=True)
    number = len(found.stops)
    if number:
        things = "One thing" if number == 1 else f"{number} things"
        result = f"{things} would stop the edit."
    else:
        result = "The edit would run."
    console.print(Text(result, style="bold"))


def _recognised(found: Diagnosis) -> str:
    what = found.architecture or "not recognised"
    if found.numbers:
        what += f", {_count(found.numbers)} parameters, {found.blocks} blocks"
    where = "" if found.machine is None else f", {found.dtype} on {found.machine.label}"
    return f"{found.config.model}: {what}{where}"


def _blocks(found: Diagnosis) -> str:
    layers = found.layers
    assert layers is not None
    adapter = f", {_count(found.adapter)} trainable" if found.adapter else ""
    return f"adapt {_range(layers.adapted)}, read {_range(layers.read)}{adapter} ({layers.why})"


def _foreseen(ahead: Outlook, seconds: float | None) -> RenderableType:
    """Memory and time, estimates both."""
    from rich.columns import Columns

    from retouch.cli import tables

    held = ahead.memory
    memory = [
        ("weights", held.weights),
        ("responseing", held.generation),
        ("states kept", held.cached),
        ("adapter, Adam", held.adapter),
        ("a step's activations", held.activations),
        ("judging", held.judging),
        ("most at one time", held.peak),
        ("to be had", ahead.budget),
        ("blocks that come by", ahead.streaming.size if ahead.streaming else None),
        ("states in memory", held.in_memory or None),
        ("states on disk", held.on_disk or None),
        ("run on disk", ahead.disk),
    ]
    shown = [(name, size_text(size)) for name, size in memory if size is not None]
    parts = [tables.rows(("memory, about", ""), shown)]
    if seconds is not None:
        times = [(part.phase.name, time_text(part.seconds)) for part in ahead.phases]
        parts.append(tables.rows(("time, about", ""), [*times, ("all", time_text(seconds))]))
    return Columns(parts, padding=(0, 4))


def _count(number: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:,}"


def _range(blocks: tuple[int, ...]) -> str:
    whole = len(blocks) > 1 and blocks == tuple(range(blocks[0], blocks[-1] + 1))
    named = f"{blocks[0]}-{blocks[-1]}" if whole else ", ".join(map(str, blocks))
    return f"block{'s' if len(blocks) > 1 else ''} {named}"
