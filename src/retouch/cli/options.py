"""Command-line options that are generated from the fields of the configuration."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.core.model_names import MODEL_HELP
from retouch.core.options import OPTIONS, Option, list_options, nest
from retouch.core.serialization import parse_json
from retouch.core.strict_model import MAX_INTEGER

FLAGS = {one.path: one.flag for one in OPTIONS}
CONFIG = tuple(FLAGS)
# Sharding takes several processes, which only an edit can use.
LOAD = ("model", *(path for path in CONFIG if path.startswith("load.") and path != "load.fsdp"))


def option(metavar: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option with a value; without flags it is named after its parameter."""
    if metavar in ("N", "X"):
        limits["callback"] = _check_number
    return typer.Option(*flags, metavar=metavar, help=help, **limits)


def _check_number(value: float | None) -> float | None:
    """The number, as those of `core.strict_model`: finite, and of at most 64 bits."""
    if value is not None and not (math.isfinite(value) and abs(value) <= MAX_INTEGER):
        raise typer.BadParameter(f"{value!s:.40} is no number of at most 64 bits.")
    return value


def out_dir(help: str) -> Any:
    """The option of an output directory."""
    return option("DIR", help, "--out", "--output-dir")


ConfigFile = Annotated[Path | None, option("FILE", "settings from a YAML or TOML file", "--config")]
Adapter = Annotated[
    Path | None, option("RUN|DIR", "the edit: a run directory or a PEFT adapter folder")
]
Suites = Annotated[
    list[str] | None,
    option(
        "NAME|FILE",
        "a public evaluation set, or a YAML file of one; NAME:N uses N of its "
        "examples; may be repeated",
    ),
]
DataDir = Annotated[
    Path | None, option("DIR", "folder with the published files of the suites (default: the hub)")
]
MaxNewTokens = Annotated[int, option("N", "maximum length of a response, in tokens", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON in place of the tables")]
OutFile = Annotated[
    Path | None, option("FILE", "also write the JSON to a file", "--out", "--output-file")
]


def configured(
    *paths: str, root: type[BaseModel] = EditConfig, model_first: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of configuration fields, such as `train.rounds`, to a command.

    The command has a parameter `settings`, a nested mapping of the values that were given. The
    field `model` is also the first positional argument, MODEL, if `model_first` is true.
    """
    fields = [field for field in list_options(root) if field.path in paths]
    parameters = [(field, _parameter(field, root, model_first)) for field in fields]
    top = [parameter for field, parameter in parameters if not field.group]
    groups = [parameter for field, parameter in parameters if field.group]
    if "model" in paths and model_first:
        argument = typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)
        top.insert(0, _keyword("positional_model", str | None, argument))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            model = values.pop("positional_model", None)
            if model is not None and values["model"] not in (None, model):
                raise ConfigError(
                    f"MODEL is {model!r} and --model is {values['model']!r}.",
                    "Give one of them.",
                    code="options-exclusive",
                )
            if model:
                values["model"] = model
            given = [(field, values.pop(field.name)) for field in fields]
            parsed = {
                field.path: _parse_mapping(field, value) if field.is_mapping else field.parse(value)
                for field, value in given
                if value is not None and value != []
            }
            command(settings=nest(parsed), **values)

        signature = inspect.signature(command, eval_str=True)
        own = [one.replace(kind=one.KEYWORD_ONLY) for one in signature.parameters.values()]
        # Typer reads the options from the signature. The command's own options come after the
        # fields at the top of the configuration and before the groups.
        accepted = [*top, *(one for one in own if one.name != "settings"), *groups]
        vars(run)["__signature__"] = signature.replace(parameters=accepted)
        run.__annotations__ = {one.name: one.annotation for one in accepted}
        return run

    return decorate


def split_names(text: str) -> list[str]:
    """The parts of a list such as `none,retouch`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def split_numbers(name: str, text: str, kind: type[int] | type[float] = int) -> list[Any]:
    """The numbers of a list such as `8,16`; `name` is the parameter's, for the error.

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


def split_assignments(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as values by name, each value as YAML has it.

    Raises:
        ConfigError: a text is not of this form; `name` is the parameter's.
    """
    import yaml

    from retouch.core.config_file import load_yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        try:
            found[key] = load_yaml(value)
        except (yaml.YAMLError, ValueError):
            equals = ""
        if not (key and equals and value):
            message = f"`{name}`: {text!r} is not of the form NAME=VALUE."
            raise ConfigError(message, code="assignment-invalid")
    return found


def _parse_mapping(field: Option, texts: Sequence[str]) -> dict[str, Any]:
    """The values of an option that is given several times: `NAME=VALUE`, or a JSON object."""
    found: dict[str, Any] = {}
    for text in texts:
        if not text.lstrip().startswith("{"):
            found |= split_assignments(field.path, [text])
            continue
        try:
            found |= parse_json(text)
        except ValueError:
            message = f"`{field.path}`: {text!r:.200} is not a JSON object."
            raise ConfigError(message, code="assignment-invalid") from None
    return found


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
    """
    own = {one.name: one.opts[0] for one in parameters if one.param_type_name == "option"}
    flags: dict[str, str] = {}
    # Of fields with the same last part, such as `learning_rate`, the one without the group's name
    # in its flag is meant.
    for field in sorted(OPTIONS, key=lambda field: field.flag.count("-"), reverse=True):
        if field.name in own:
            flags |= dict.fromkeys((field.path, field.path.rpartition(".")[2]), field.flag)
    return own | flags


def _parameter(field: Option, root: type[BaseModel], model_first: bool) -> inspect.Parameter:
    kind: Any = str | None
    flags = field.flags
    if field.is_mapping:
        kind = list[str] | None
    if field.is_switch:
        kind = bool | None
        flags = (f"{field.flag}/--no-{field.flag.removeprefix('--')}", *field.flags[1:])
    # The panel's title is the first line of the group's docstring.
    group = root.model_fields[field.group].annotation if field.group else None
    # Numbers come as text, too: pydantic reads them, with the same messages as for a file.
    info = typer.Option(
        *flags,
        metavar=field.metavar or None,
        help="the same as MODEL"
        if field.path == "model" and model_first
        else f"{field.help}{'; may be repeated' if field.is_mapping else ''}",
        rich_help_panel=(group.__doc__ or "").splitlines()[0].rstrip(".") if group else None,
        show_default=False,
    )
    return _keyword(field.name, kind, info)


def _keyword(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )
