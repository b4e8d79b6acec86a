"""Command-line options that are generated from the fields of the configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.core.options import OPTIONS, Option, list_options, nest

CONFIG = tuple(option.path for option in OPTIONS)
# Sharding takes several processes, which only an edit can use.
LOAD = ("model", *(path for path in CONFIG if path.startswith("load.") and path != "load.fsdp"))

MODEL_HELP = "`pocket`, a local folder or a hub id"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="settings from a YAML or TOML file"),
]
Adapter = Annotated[
    Path | None,
    typer.Option(metavar="RUN|DIR", help="the edit: a run directory or a PEFT adapter folder"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON in place of the tables")]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", "--output-file", metavar="FILE", help="also write the JSON to a file"),
]


def out_dir(help: str) -> Any:
    """The option of an output directory.

    Args:
        help: its help text.
    """
    return typer.Option("--out", "--output-dir", metavar="DIR", help=help)


def configured(
    *paths: str, root: type[BaseModel] = EditConfig
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of configuration fields to a command.

    The command has a parameter `settings`, a nested mapping of the values that were given. The
    field `model` is also a positional argument, MODEL.

    Args:
        paths: dotted paths of fields, such as `train.rounds`.
        root: the configuration class.
    """
    options = [option for option in list_options(root) if option.path in paths]
    generated = [_parameter(option, root) for option in options]
    if "model" in paths:
        argument = typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)
        generated.insert(0, _keyword("positional_model", str | None, argument))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            if "model" in paths:
                values["model"] = _one_model(values.pop("positional_model"), values["model"])
            given = [(option, values.pop(option.name)) for option in options]
            parsed = {
                option.path: option.parse(value) for option, value in given if value is not None
            }
            command(settings=nest(parsed), **values)

        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != "settings"
        ]
        # The fields at the top of the configuration come before the command's own options, and
        # the groups after them. Typer reads the options from the signature.
        top = [parameter for parameter in generated if _panel(parameter) is None]
        groups = [parameter for parameter in generated if _panel(parameter) is not None]
        parameters = [*top, *own, *groups]
        vars(run)["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _one_model(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None and argument != option:
        raise ConfigError(
            f"MODEL is {argument!r} and --model is {option!r}.",
            "Give one of them.",
            code="options-exclusive",
        )
    return argument or option


def require_model(settings: dict[str, Any], config: Path | None, hint: str) -> None:
    """Check that a model is given, on the command line or possibly in a configuration file.

    Raises:
        ConfigError: there is neither.
    """
    if "model" not in settings and config is None:
        raise ConfigError("MODEL is missing.", hint, code="model-missing")


def split_names(text: str) -> list[str]:
    """The parts of a list such as `none,retouch`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def split_numbers(name: str, text: str, kind: type[int] | type[float] = int) -> list[Any]:
    """The numbers of a list such as `8,16`.

    Args:
        name: the name of the parameter, for the error.
        text: the list.
        kind: the type of the numbers.

    Raises:
        ConfigError: a part is not such a number.
    """
    try:
        return [kind(part) for part in split_names(text)]
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ConfigError(
            f"`{name}` must be a list of {numbers}, got {text!r}.",
            "Separate them with commas, as in 8,16.",
            code="number-list",
        ) from None


class Command(TyperCommand):
    """A command whose help lists its options in panels, one for each configuration group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options, panel by panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Options"
                if parameter.param_type_name == "argument":
                    # Typer writes the Python type after the name.
                    kind, record = "Arguments", (record[0].split()[0], record[1])
                panel = getattr(parameter, "rich_help_panel", None) or kind
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def flags_of(parameters: Sequence[Any]) -> dict[str, str]:
    """The flags of a command's options by the names that error messages use for them.

    A name is a parameter's (`output_dir`), a field's dotted path (`data.num_examples`) or a field's
    last part (`num_examples`).

    Args:
        parameters: the command's parameters.
    """
    own = {one.name: one.opts[0] for one in parameters if one.param_type_name == "option"}
    flags: dict[str, str] = {}
    # Of fields with the same last part, such as `learning_rate`, the one without the group's name
    # in its flag is meant.
    for option in sorted(OPTIONS, key=lambda option: option.flag.count("-"), reverse=True):
        if option.name in own:
            flags[option.path] = option.flag
            flags[option.path.rpartition(".")[2]] = option.flag
    return flags | {name: flag for name, flag in own.items() if name not in flags}


def _parameter(option: Option, root: type[BaseModel]) -> inspect.Parameter:
    panel = _group_title(option, root)
    if option.is_switch:
        stem = option.flag.removeprefix("--")
        names = (f"{option.flag}/--no-{stem}", *option.flags[1:])
        info = typer.Option(*names, help=option.help, rich_help_panel=panel, show_default=False)
        return _keyword(option.name, bool | None, info)
    help = "the same as MODEL" if option.path == "model" else option.help
    # Numbers come as text, too: pydantic reads them, with the same messages as for a file.
    info = typer.Option(*option.flags, metavar=option.metavar, help=help, rich_help_panel=panel)
    return _keyword(option.name, str | None, info)


def _keyword(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )


def _panel(parameter: inspect.Parameter) -> str | None:
    panel: str | None = parameter.annotation.__metadata__[0].rich_help_panel
    return panel


def _group_title(option: Option, root: type[BaseModel]) -> str | None:
    """The first line of the group's docstring; None for a field at the top."""
    if not option.group:
        return None
    group: Any = root
    for name in option.group.split("."):
        group = group.model_fields[name].annotation
    return (inspect.getdoc(group) or option.group).splitlines()[0].rstrip(".")
