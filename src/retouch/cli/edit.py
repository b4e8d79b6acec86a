"""`retouch edit`: its options are the fields of `EditConfig`, one schema for both."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from retouch.core.config import EditConfig
from retouch.core.config_file import resolve
from retouch.core.errors import ConfigError
from retouch.core.launch import launched_rank
from retouch.core.types import Event

# Where the help lists an option; what is named nowhere comes last.
PANELS = {
    "What to edit": (
        "revision",
        "concept",
        "direction",
        "seed",
        "labels",
        "retain",
        "also_hold",
        "source",
        "forced",
        "forced_rows",
    ),
    "Where": ("layers", "read_layers", "modules", "rank", "alpha"),
    "Training": (
        "rounds",
        "steps",
        "batch",
        "lr",
        "average",
        "adversarial_weight",
        "pair_weight",
        "supervised_weight",
        "first_weight",
        "match_prompt",
        "perturb",
        "perturb_steps",
        "tamper",
        "tamper_lr",
        "tamper_weight",
        "retain_weight",
        "retain_response_weight",
        "drift_guard",
        "patience",
    ),
    "Discriminators": (
        "response_positions",
        "discriminator_width",
        "discriminator_lr",
        "discriminator_first",
        "discriminator_steps",
        "discriminator_fresh",
        "smoothing",
    ),
    "Running it": (
        "device",
        "dtype",
        "at_once",
        "cache_memory",
        "device_memory",
        "shard",
        "quantize",
        "chat_template",
        "trust_remote_code",
        "allow_weakening",
        "measure",
        "measure_rows",
        "response_tokens",
    ),
}
EPILOG = "Options win over --config, which wins over the concept's tuned settings."


class EditCommand(TyperCommand):
    """The command, with its many options listed by what they are about."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, panel by panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def edit(
    model: str | None,
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    quiet: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Edit one concept inside a model. MODEL is `pocket`, a local folder or a hub id."""
    if quiet and as_json:
        raise ConfigError("--quiet and --json exclude each other.")
    given = {name: _value(name, text) for name, text in fields.items() if text is not None}
    if resume is not None:
        extra = [
            name
            for name, value in (("MODEL", model), ("--config", config), ("--out", out))
            if value is not None
        ]
        extra += [f"--{name.replace('_', '-')}" for name in given]
        if extra:
            raise ConfigError(
                f"--resume goes on with the run as it was configured; leave out {', '.join(extra)}."
            )
    elif model is not None:
        given["model"] = model
    elif config is None:
        raise ConfigError(
            "Name the model to edit, or a run to go on with.",
            "For example: `retouch edit pocket --concept safety`, or `retouch edit --resume RUN`.",
        )
    run(given, config=config, out=out, resume=resume, quiet=quiet, as_json=as_json)


def run(
    given: dict[str, Any],
    *,
    config: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
    next_steps: bool = True,
) -> Any:
    """Make or go on with an edit, show it, and return the `pipeline.Run`."""
    from rich.console import Console

    from retouch.cli import tables
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

    # What is wrong with the options is said before the seconds that the libraries take to load.
    resolve(given, where="the options")
    quiet_libraries()
    if resume is None:
        from retouch.pipeline import choose_path, configure

        settings = configure(given, config)
        where = out or choose_path(settings)
    else:
        where = resume
    try:
        with progress:
            from retouch import pipeline

            if resume is None:
                done = pipeline.edit(settings, out=where, on_event=on_event)
            else:
                done = pipeline.resume(where, on_event=on_event)
    except KeyboardInterrupt:
        typer.echo(_stopped(where), err=True)
        raise typer.Exit(130) from None
    if silent:
        return done
    if as_json:
        metrics = [serialization.to_plain(record) for record in done.metrics]
        typer.echo(serialization.to_json({"run": str(done.path), "metrics": metrics}))
    elif quiet:
        typer.echo(str(done.path))
    else:
        console.print()
        if done.metrics:
            console.print(tables.scores(done.metrics))
        if next_steps:
            typer.echo(f"The run: {done.path}")
            typer.echo("Next:")
            tables.commands(console, after(done.path, done.config.model))
    return done


def after(path: Path, model: str) -> list[tuple[str, str]]:
    """What one does with a finished run."""
    return [
        (f"retouch chat {model} --adapter {path}", "talk to both models, side by side"),
        (f"open {path / 'report.html'}", "the report, in any browser"),
        (f"retouch export {path} --out {path.name}-adapter", "the adapter for PEFT, with its card"),
    ]


def _stopped(where: Path) -> str:
    if (where / "config.yaml").exists():
        return f"Interrupted. Go on with: retouch edit --resume {where}"
    return "Interrupted, before anything was written."


def _value(name: str, text: Any) -> Any:
    """An option's text as its field takes it; pydantic turns text into numbers."""
    if _is_tuple(EditConfig.model_fields[name].annotation):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _kinds(annotation: Any) -> list[Any]:
    """The types that a field takes, None left out."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not NoneType]
    return [annotation]


def _is_tuple(annotation: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in _kinds(annotation))


def _metavar(annotation: Any) -> str:
    (kind,) = _kinds(annotation)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "N,N,..." if int in get_args(kind) else "NAME,..."
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _help(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == () or isinstance(default, bool):
        return field.description or ""
    return f"{field.description} (default: {default})"


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    panel = next((panel for panel, names in PANELS.items() if name in names), "More")
    if field.annotation is bool:
        kind: Any = bool | None
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}", help=_help(field), rich_help_panel=panel, show_default=False
        )
    else:
        # All other kinds come as text: pydantic reads them, with the same words for what is wrong
        # as for a configuration file.
        kind = str | None
        option = typer.Option(
            flag, metavar=_metavar(field.annotation), help=_help(field), rich_help_panel=panel
        )
    return _parameter(name, kind, option)


def _parameter(name: str, kind: Any, option: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _signature() -> inspect.Signature:
    """The command's signature: the fields of `EditConfig` among what only the command line has."""
    files = "The run"
    own = [
        _parameter(
            "model",
            str | None,
            typer.Argument(metavar="MODEL", help="`pocket`, a local folder, or a hub id."),
        ),
        *(
            _option(name, field)
            for panel_names in (*PANELS.values(), EditConfig.model_fields)
            for name, field in EditConfig.model_fields.items()
            if name in panel_names and name != "model"
        ),
        _parameter(
            "config",
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                help="settings from a YAML or TOML file",
                rich_help_panel=files,
            ),
        ),
        _parameter(
            "out",
            Path | None,
            typer.Option(
                "--out",
                metavar="DIR",
                help="the run directory (default: runs/CONCEPT-DIRECTION-NUMBER)",
                rich_help_panel=files,
            ),
        ),
        _parameter(
            "resume",
            Path | None,
            typer.Option(
                "--resume",
                metavar="DIR",
                help="go on with a run that was cut off",
                rich_help_panel=files,
            ),
        ),
        _parameter(
            "quiet",
            bool,
            typer.Option("--quiet", "-q", help="print the run's path alone", rich_help_panel=files),
            False,
        ),
        _parameter(
            "as_json",
            bool,
            typer.Option(
                "--json",
                help="print one JSON object an event, then the metrics",
                rich_help_panel=files,
            ),
            False,
        ),
    ]
    return inspect.Signature(list({parameter.name: parameter for parameter in own}.values()))


# Typer reads a command's options off its signature.
_SIGNATURE = _signature()
vars(edit)["__signature__"] = _SIGNATURE
edit.__annotations__ = {name: p.annotation for name, p in _SIGNATURE.parameters.items()}
