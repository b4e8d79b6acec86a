"""Tuned settings of methods: those that ship for a concept and a direction, or a user's file.

The file maps methods to settings; a setting that it does not list keeps its default. A comment
before each method states the budget that the search had:

```yaml
# lora-sft-kl: 40 trials in 9.7 minutes, 128 examples, seed 0
lora-sft-kl:
  learning_rate: 0.00132
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from retouch.concepts.concept import Concept
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.atomic import atomic_write, check_output_file, writing
from retouch.core.config_file import invalid, read_config_file
from retouch.core.errors import ConfigError
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.lock import one_writer
from retouch.core.options import flatten, list_options, nest
from retouch.core.types import Direction
from retouch.methods.method import Method
from retouch.methods.registry import method_ids

HEAD = (
    "# Method settings found by `retouch tune`; a setting that is not listed keeps its default.\n"
)
_BUDGET = re.compile(r"^# ([\w-]+): (.+)$", re.MULTILINE)

Settings = dict[str, Any]  # by dotted path


def find_tuned(
    concept: Concept, direction: Direction, file: Path | None = None
) -> tuple[dict[str, Settings], str]:
    """Find tuned settings: those of the file, otherwise those that ship for a built-in concept.

    Returns:
        The settings by method and dotted path, and where they come from, in words.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    if file is not None:
        return _read(file), file.name  # published pages name no folder of this machine
    name = concept.name
    shipped = resources.files("retouch.comparison") / "tuned" / f"{name}-{direction}.yaml"
    builtin = name in builtin_names() and load_concept(name).hash == concept.hash
    if builtin and shipped.is_file():
        with resources.as_file(shipped) as path:
            return _read(path), f"shipped for {name}, {direction}"
    return {}, "the defaults"


def make_settings(method: Method, values: Mapping[str, Any], where: str) -> BaseModel:
    """The settings of a method from values by dotted path, the others at their defaults.

    Raises:
        ConfigError: names every setting that is unknown or has a wrong value.
    """
    try:
        return method.settings.model_validate(nest(values))
    except ValidationError as error:
        known = ", ".join(option.path for option in list_options(method.settings)) or "none"
        raise ConfigError(
            invalid(error, f"{where}, method `{method.id}`").message,
            f"The settings of the method are: {known}.",
            code="settings-invalid",
        ) from None


def check_settings_file(file: Path) -> None:
    """Check that tuned settings can be saved in a file, before a search that takes long.

    Raises:
        RunError: the file exists and is not a file of tuned settings.
    """
    check_output_file(file, lambda text: text.startswith(HEAD))


def save_settings(file: Path, method: str, settings: Mapping[str, Any], budget: str) -> None:
    """Write the settings of a method, by dotted path, into a file, beside those of other methods.

    `budget` states the cost of the search, for the comment.

    Raises:
        ConfigError: the file has settings of a method that does not exist.
        RunError: the file exists and is not a file of tuned settings, or cannot be written.
    """
    check_settings_file(file)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(file.parent):
        saved = _read(file) if file.is_file() else {}
        budgets = dict(_BUDGET.findall(read_text(file, MAX_CONFIG))) if saved else {}
        saved[method], budgets[method] = dict(settings), budget
        parts = [HEAD]
        for id in (id for id in method_ids() if id in saved):
            if id in budgets:
                parts.append(f"# {id}: {budgets[id]}\n")
            parts.append(yaml.safe_dump({id: nest(saved[id])}, sort_keys=False, width=10_000))
        atomic_write(file, "".join(parts))


def _read(file: Path) -> dict[str, Settings]:
    """The settings by method and dotted path."""
    values = read_config_file(file)
    for id, settings in values.items():
        if id not in method_ids():
            raise ConfigError(
                f"{file}: there is no method `{id}`.",
                f"The methods are: {', '.join(method_ids())}.",
                code="method-unknown",
            )
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{file} does not map the method `{id}` to settings.",
                "Write `METHOD: {setting: value}` lines.",
            )
    return {id: flatten(settings) for id, settings in values.items()}
