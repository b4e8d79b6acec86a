"""The methods by their ids, in the order of every table."""

from __future__ import annotations

from importlib import import_module

from retouch.core.errors import ConfigError
from retouch.methods.method import Method

_HOMES = {
    "none": ("prompting", "NoEdit"),
    "self-reminder": ("prompting", "SelfReminder"),
    "in-context-defense": ("prompting", "InContextDefense"),
    "steering": ("steering", "Steering"),
    "reading-vector": ("steering", "ReadingVector"),
    "ablation": ("ablation", "Ablation"),
    "lorra": ("lorra", "Lorra"),
    "circuit-breaker": ("circuit_breaker", "CircuitBreaker"),
    "paired-matching": ("paired_matching", "PairedMatching"),
    "lora-sft": ("fine_tuning", "LoraSft"),
    "lora-sft-replay": ("fine_tuning", "LoraSftReplay"),
    "lora-sft-kl": ("fine_tuning", "LoraSftKl"),
    "dpo": ("dpo", "Dpo"),
    "are-published": ("are_published", "AreOriginal"),
    "are-published-wrapped": ("are_published", "AreOriginalSource"),
    "retouch": ("retouch", "Retouch"),
}
IDS = tuple(_HOMES)


def get_method(id: str) -> Method:
    """The method of an id; its libraries are imported when it is asked for.

    Raises:
        ConfigError: there is no such method, or its library is not installed.
    """
    if id not in _HOMES:
        raise ConfigError(f"There is no method `{id}`.", f"The methods are: {', '.join(IDS)}.")
    module, name = _HOMES[id]
    try:
        found = getattr(import_module(f"retouch.methods.{module}"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The method `{id}` needs the library {error.name}.", "pip install 'retouch[compare]'"
        ) from None
    method: Method = found()
    return method
