"""Read, merge, validate and write configurations."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, RetouchError, shorten
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.options import OPTIONS, RENAMED, flatten

# What a person decides at each call: which model is edited which way, on which device, whether code
# runs that comes with it, and why its safety may be weakened. A file may come from elsewhere.
CALLER_ONLY = (
    "model",
    "direction",
    "allow_weakening",
    "load.device",
    "load.max_device_memory",
    "load.fsdp",
    "load.trust_remote_code",
)
MAX_ALIASES = 100  # of a YAML file


def read_config_file(
    file: Path | Traversable,
    kind: type[RetouchError] = ConfigError,
    code: str = "config-syntax",
    hint: str = "Check the path.",
) -> dict[str, Any]:
    """Read a YAML or TOML file as a mapping; an empty file is an empty one.

    Raises:
        RetouchError: of `kind`; the file is missing (with `hint`), does not parse or is not a
            mapping (with `code`), or cannot be read.
    """
    form = "TOML" if file.name.endswith(".toml") else "YAML"
    try:
        text = read_text(file, MAX_CONFIG)
    except FileNotFoundError:
        raise kind(f"The file {file} does not exist.", hint, code="file-missing") from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"{file} cannot be read: {getattr(error, 'strerror', None) or error}."
        raise kind(message, "Save it as UTF-8.", code="file-unreadable") from None
    try:
        values = tomllib.loads(text) if form == "TOML" else load_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # A number of too many digits is a ValueError, as all errors of TOML are.
        message = f"{file} is not valid {form}: {error}."
        raise kind(message, "Correct the line.", code=code) from None
    if values is not None and not isinstance(values, dict):
        raise kind(f"{file} is not a mapping.", "Write `key: value` lines.", code=code)
    return values or {}


class _Loader(yaml.SafeLoader):
    """YAML of plain values: texts as keys, no dates or tags, and few aliases.

    Aliases of values with aliases could stand for billions of values.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._aliases, self._nested = 0, set[str]()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before, is_alias = self._aliases, isinstance(event, yaml.AliasEvent)
        self._aliases += is_alias
        if is_alias and (event.anchor in self._nested or self._aliases > MAX_ALIASES):
            problem = "there are too many aliases, or aliases in aliases"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        node = super().compose_node(parent, index)
        if not is_alias and event.anchor is not None and self._aliases > before:
            self._nested.add(event.anchor)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        values = super().construct_mapping(node, deep)
        seen: set[str] = set()
        for key, _ in node.value:
            problem = "" if isinstance(self.construct_object(key), str) else "is not a text"
            if problem or key.value in seen:
                problem = problem or "appears twice"
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value:.100}` {problem}", key.start_mark
                )
            seen.add(key.value)
        return values


# A date stays a text.
_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The values of a YAML document: plain ones, with texts as keys.

    Raises:
        yaml.YAMLError: it does not parse, or has many aliases, tags or other keys.
        ValueError: a number has too many digits.
        RecursionError: it is nested too deeply.
    """
    return yaml.load(text, Loader=_Loader)


def explicit(config: BaseModel) -> dict[str, Any]:
    """The values that were set when a configuration was made, as nested mappings."""
    return config.model_dump(exclude_unset=True)


def check_caller_only(values: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Check that a file decides nothing that the caller must: it may repeat what the caller gave.

    Args:
        values: the file's values, as nested mappings.
        given: the values of the call alone, with the defaults.
        where: the file, for the error.

    Raises:
        ConfigError: the file has another value of a setting in `CALLER_ONLY`.
    """
    ours, theirs = flatten(given), flatten(values)
    differing = [path for path in CALLER_ONLY if theirs.get(path, ours[path]) != ours[path]]
    if differing:
        named = ", ".join(f"`{path}` {theirs[path]!r:.200}" for path in differing)
        raise ConfigError(
            f"{where} has {named}. A file cannot decide that.",
            f"If it is what you want, give {', '.join(f'`{path}`' for path in differing)} as well.",
            code="caller-only",
        )


def resolve(*layers: Mapping[str, Any], where: str = "the configuration") -> EditConfig:
    """Merge mappings group by group and validate the result; later mappings take precedence.

    Raises:
        ConfigError: names every key that is unknown or has a wrong value.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = {**merged[key], **value}
            else:
                merged[key] = value
    try:
        return EditConfig.model_validate(merged)
    except ValidationError as error:
        raise invalid(error, where) from None


def invalid(error: ValidationError, where: str) -> ConfigError:
    """The error that names every key of a configuration that is unknown or has a wrong value."""
    problems, hints = [], []
    for problem in error.errors():
        key = shorten(".".join(str(part) for part in problem["loc"]))
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key `{key}`")
            hints.append(_suggestion(key))
        else:
            # The messages of the validators in `core.config` contain the value, pydantic's do not.
            text = problem["msg"].removeprefix("Value error, ")
            if text == problem["msg"]:
                text = text.replace("Input should be", "must be")
                text = f"{text}, got {problem['input']!r:.200}"
            problems.append(f"`{key}` {text.rstrip('.')}")
    hint = " ".join(dict.fromkeys(hints))
    return ConfigError(f"In {where}: {'; '.join(problems)}.", hint, code="config-invalid")


def _suggestion(key: str) -> str:
    """A hint for an unknown key: its new name, the closest key, or all keys."""
    if key in RENAMED:
        return f"`{key}` was renamed: write `{RENAMED[key]}`."
    paths = [option.path for option in OPTIONS]
    same = [path for path in paths if path.rpartition(".")[2] == key.rpartition(".")[2]]
    close = same or difflib.get_close_matches(key, paths, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"The keys are: {', '.join(paths)}."


def dump_yaml(config: BaseModel) -> str:
    """Format a configuration as YAML that reads back to an equal one, with a comment per field."""
    return "\n".join(_yaml_lines(config, "")) + "\n"


def _yaml_lines(group: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            yield f"\n{indent}{name}:"
            yield from _yaml_lines(value, f"{indent}  ")
            continue
        # Dumped as the entry of a list, without the brackets, so that it is on the field's line:
        # PyYAML ends the document after a scalar alone, and writes a list alone in block style.
        text = yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]
        yield f"{indent}# {field.description}"
        yield f"{indent}{name}: {text}"
