"""The methods by id: the built-in ones, and entry points of the group `retouch.methods`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from retouch.core.errors import ConfigError
from retouch.core.plugins import find_plugins, load_plugin
from retouch.methods.method import Method

ENTRY_POINTS = "retouch.methods"
_BUILTIN = {  # in the order of tables and plots
    "none": "prompting:NoEdit",
    "self-reminder": "prompting:SelfReminder",
    "in-context-defense": "prompting:InContextDefense",
    "steering": "steering:Steering",
    "reading-vector": "steering:ReadingVector",
    "ablation": "steering:Ablation",
    "lorra": "state_matching:Lorra",
    "circuit-breaker": "circuit_breaker:CircuitBreaker",
    "paired-matching": "state_matching:PairedMatching",
    "lora-sft": "lora:LoraSft",
    "lora-sft-replay": "lora:LoraSftReplay",
    "lora-sft-kl": "lora:LoraSftKl",
    "dpo": "dpo:Dpo",
    "are-original": "are_original:AreOriginal",
    "are-original-source": "are_original:AreOriginalSource",
    "retouch": "retouch:Retouch",
}
_REGISTERED: dict[str, type[Method]] = {}


def method_ids() -> tuple[str, ...]:
    """The ids of all methods: built-in, then registered, then entry points by name."""
    plugins = sorted(find_plugins(ENTRY_POINTS, _BUILTIN))
    return tuple(dict.fromkeys((*_BUILTIN, *_REGISTERED, *plugins)))


def register_method(method_class: type[Method]) -> type[Method]:
    """Add a method under its `id`; usable as a class decorator.

    Only the current process knows it; worker processes need an entry point.

    Raises:
        ConfigError: a built-in method has the id, or the class has none.
    """
    id = getattr(method_class, "id", "")
    if not id or id in _BUILTIN:
        raise ConfigError(
            f"`{method_class.__name__}.id` is {id!r}, which is "
            f"{'a built-in method' if id else 'no id'}.",
            "Give the class an `id` of its own.",
            code="method-id",
        )
    _REGISTERED[id] = method_class
    return method_class


def get_method(id: str) -> Method:
    """Instantiate the method of an id; its module is imported only now.

    Raises:
        ConfigError: there is no such method, a library that it needs is not installed, or its
            entry point cannot be loaded.
    """
    if id in _REGISTERED:
        return _REGISTERED[id]()
    if id in _BUILTIN:
        module, _, name = _BUILTIN[id].partition(":")
        return _instantiate(getattr(import_module(f"retouch.methods.{module}"), name))
    plugins = find_plugins(ENTRY_POINTS, _BUILTIN)
    if id not in plugins:
        raise ConfigError(
            f"There is no method `{id}`.",
            f"The methods are: {', '.join(method_ids())}.",
            code="method-unknown",
        )
    return load_plugin(plugins[id], "method", _instantiate, ConfigError, "method-not-loaded")


def _instantiate(found: Any) -> Method:
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise TypeError(f"{found!r} is no subclass of `retouch.methods.method.Method`")
    return found()
