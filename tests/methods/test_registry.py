from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

import pytest

from helpers.fake_methods import NoEdit
from retouch.core import plugins
from retouch.core.errors import ConfigError
from retouch.methods import registry
from retouch.methods.method import Method
from retouch.methods.registry import get_method, method_ids, register_method

BUILTIN = (
    "none",
    "self-reminder",
    "in-context-defense",
    "steering",
    "reading-vector",
    "ablation",
    "lorra",
    "circuit-breaker",
    "paired-matching",
    "lora-sft",
    "lora-sft-replay",
    "lora-sft-kl",
    "dpo",
    "are-original",
    "are-original-source",
    "retouch",
)


class Plugin(NoEdit):
    """A method of another package."""

    id = "plugin"


def add_entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    found = [metadata.EntryPoint(name, value, "retouch.methods") for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


def test_built_in_methods_have_their_id_a_title_and_default_settings() -> None:
    assert method_ids() == BUILTIN
    for id in BUILTIN:
        method = get_method(id)
        assert (method.id, bool(method.title)) == (id, True)
        assert method.settings().model_dump() is not None


def test_tuned_settings_are_valid() -> None:
    from importlib import resources

    import yaml

    for file in resources.files("retouch.comparison").joinpath("tuned").iterdir():
        for id, values in yaml.safe_load(file.read_text("utf-8")).items():
            get_method(id).settings(**values)


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="nothing") as error:
        get_method("nothing")
    assert error.value.code == "method-unknown"
    assert "retouch" in error.value.hint


def test_entry_points_are_listed_without_import_and_loaded_on_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_entry_points(monkeypatch, plugin="no_such_module:Method")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: Plugin)
    assert method_ids() == (*BUILTIN, "plugin")
    assert isinstance(get_method("plugin"), Plugin)


def test_entry_point_does_not_override_a_built_in_method(monkeypatch: pytest.MonkeyPatch) -> None:
    add_entry_points(monkeypatch, steering="helpers.fake_methods:NoEdit")
    assert method_ids() == BUILTIN
    assert get_method("steering").title == "Steering (CAA)"


@pytest.mark.parametrize("value", ["no_such_module:Method", "json:dumps", "json:NoSuchName"])
def test_entry_point_that_cannot_be_loaded_is_named(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_entry_points(monkeypatch, broken=value)
    with pytest.raises(ConfigError, match=f"broken.*{value}") as error:
        get_method("broken")
    assert error.value.code == "method-not-loaded"


def test_registered_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    assert register_method(Plugin) is Plugin
    assert method_ids()[-1] == "plugin"
    assert isinstance(get_method("plugin"), Plugin)


@pytest.mark.parametrize("id", ["steering", ""])
def test_registered_class_needs_an_id_of_its_own(id: str) -> None:
    made: Any = type("Made", (Method,), {"id": id})
    with pytest.raises(ConfigError) as error:
        register_method(made)
    assert error.value.code == "method-id"


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "retouch.methods.dpo", raising=False)
    with pytest.raises(ConfigError, match="trl") as error:
        get_method("dpo")
    assert error.value.code == "library-missing"
