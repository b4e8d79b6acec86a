"""Tuned settings of methods: what ships for a concept and a direction, or a file of the user's.

A file maps methods to settings; what it leaves out keeps its default. For each method a comment at
its head says what the search could spend:

```yaml
# lora-sft-kl: 40 trials in 9.7 minutes, 128 labels, seed 0
lora-sft-kl: {lr: 0.00132, steps: 120}
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retouch.concepts.registry import builtin_names
from retouch.core.atomic import atomic_write
from retouch.core.errors import ConfigError
from retouch.core.types import Direction
from retouch.methods import registry
from retouch.methods.method import Method, Settings

HEAD = "# Settings of methods, chosen by `retouch tune`; what is left out keeps its default.\n"
_BUDGET = re.compile(r"^# ([\w-]+): (.+)$", re.MULTILINE)


def find_tuned(
    concept: str, direction: Direction, file: Path | None = None
) -> tuple[dict[str, dict[str, Any]], str]:
    """The tuned settings by method, and where they come from: the file, else the shipped one.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    if file is not None:
        return _read(file), str(file)
    shipped = resources.files("retouch.comparison").joinpath("tuned", f"{concept}-{direction}.yaml")
    if concept in builtin_names() and shipped.is_file():
        return _read(shipped), f"shipped for {concept}, {direction}"
    return {}, "the defaults"


def make_settings(method: Method, values: Mapping[str, Any], where: str) -> Settings:
    """A method's settings, the rest at their defaults.

    Raises:
        ConfigError: names every setting that is unknown or has a wrong value.
    """
    try:
        return method.settings(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            unknown = problem["type"] == "extra_forbidden"
            lines.append(
                f"unknown setting `{key}`"
                if unknown
                else f"`{key}`: {problem['msg']}, not {problem['input']!r}"
            )
        known = ", ".join(method.settings.model_fields) or "none"
        raise ConfigError(
            f"In {where}, method `{method.id}`: {'; '.join(lines)}.", f"Its settings are: {known}."
        ) from None


def keep(file: Path, method: str, settings: Mapping[str, Any], budget: str) -> None:
    """Write a method's settings into a file, beside those of other methods.

    Raises:
        ConfigError: what is there is no such file.
        RunError: it cannot be written.
    """
    kept, budgets = {}, {}
    if file.is_file():
        kept = _read(file)
        budgets = dict(_BUDGET.findall(file.read_text("utf-8")))
    kept[method], budgets[method] = dict(settings), budget
    order = [id for id in registry.IDS if id in kept] + [
        id for id in kept if id not in registry.IDS
    ]
    parts = [HEAD]
    for id in order:
        if id in budgets:
            parts.append(f"# {id}: {budgets[id]}\n")
        parts.append(yaml.safe_dump({id: kept[id]}, sort_keys=False, width=10_000))
    atomic_write(file, "".join(parts))


def _read(file: Path | Traversable) -> dict[str, dict[str, Any]]:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {file} of tuned settings.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.", "Save it as UTF-8 YAML.") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(one, dict) for one in values.values()):
        raise ConfigError(
            f"{file} holds no settings by method.", "Write `METHOD: {setting: value}` lines."
        )
    unknown = [id for id in values if id not in registry.IDS]
    if unknown:
        raise ConfigError(
            f"{file}: there is no method `{unknown[0]}`.",
            f"The methods are: {', '.join(registry.IDS)}.",
        )
    return values
