"""Entry points of other packages, which add concepts, scorers and methods."""

from __future__ import annotations

from collections.abc import Callable, Container
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from retouch.core.errors import ConfigError, RetouchError

T = TypeVar("T")


def find_plugins(group: str, builtin: Container[str]) -> dict[str, EntryPoint]:
    """The entry points of a group by name, without those of built-in names; none is imported."""
    return {point.name: point for point in entry_points(group=group) if point.name not in builtin}


def load_plugin(
    point: EntryPoint,
    noun: str,
    convert: Callable[[Any], T],
    error_type: type[RetouchError],
    code: str,
) -> T:
    """Import an entry point and convert the object that it names.

    Args:
        point: the entry point.
        noun: the kind of plugin, such as `scorer`, for the message.
        convert: makes the plugin from the object; it raises anything where that is not possible.
        error_type: the class of the error.
        code: the code of the error.

    Raises:
        RetouchError: the import or `convert` raised an exception; a `RetouchError` stays as it is.
    """
    try:
        return convert(point.load())
    except RetouchError:
        raise
    except Exception as error:  # importing foreign code can raise anything
        package = f" of the package {point.dist.name}" if point.dist else ""
        raise error_type(
            f"The {noun} `{point.name}`{package} (entry point {point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}.",
            "Update or uninstall the package that provides it.",
            code=code,
        ) from error


def import_library(name: str, user: str, install: str) -> Any:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed; names its user and `pip install`'s argument.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{user} needs the library {name}.", f"pip install {install}", code="library-missing"
        ) from None
