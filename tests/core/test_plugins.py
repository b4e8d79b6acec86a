from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from retouch.core import plugins
from retouch.core.errors import ConfigError, DataError
from retouch.core.plugins import find_plugins, load_plugin


def plugin(monkeypatch: pytest.MonkeyPatch, value: Any) -> EntryPoint:
    """An entry point `some_package:VALUE`."""
    monkeypatch.setitem(sys.modules, "some_package", SimpleNamespace(VALUE=value))
    return EntryPoint("mine", "some_package:VALUE", "group")


def load(point: EntryPoint, convert: Any = int) -> Any:
    return load_plugin(point, "number", convert, DataError, "number-not-loaded")


def test_entry_points_are_found_without_import_and_built_in_names_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [EntryPoint(name, "no_such_module:X", "group") for name in ("mine", "built-in")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "group" else [])
    assert find_plugins("group", {"built-in": 1}) == {"mine": points[0]}
    assert find_plugins("other", {}) == {}


def test_the_object_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(plugin(monkeypatch, "3")) == 3


def test_any_exception_becomes_one_error_that_names_the_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = plugin(monkeypatch, "three")
    for point, problem in (
        (broken, "ValueError"),
        (EntryPoint("mine", "some_package:OTHER", "group"), "AttributeError"),
        (EntryPoint("mine", "no_such_module:X", "group"), "no_such_module"),
    ):
        with pytest.raises(DataError) as error:
            load(point)
        assert error.value.code == "number-not-loaded"
        for part in ("number `mine`", point.value, problem):
            assert part in error.value.message
    vars(broken)["dist"] = SimpleNamespace(name="shop")
    with pytest.raises(DataError, match="package shop"):
        load(broken)


def test_an_error_for_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(value: Any) -> int:
        raise ConfigError("no", code="mine")

    with pytest.raises(ConfigError) as error:
        load(plugin(monkeypatch, "3"), convert)
    assert error.value.code == "mine"
