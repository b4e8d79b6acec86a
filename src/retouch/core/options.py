"""The fields of the configuration as a flat list, for options, search spaces and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retouch.core.config import EditConfig

# Groups whose flags begin with the group's name, since other groups have fields of the same names.
PREFIXED = ("discriminator",)

# The keys of configurations before the groups, with their paths now, for error messages.
RENAMED = {
    "revision": "load.revision",
    "device": "load.device",
    "dtype": "load.dtype",
    "quantize": "load.quantize",
    "chat_template": "load.chat_template",
    "trust_remote_code": "load.trust_remote_code",
    "device_memory": "load.max_device_memory",
    "shard": "load.fsdp",
    "labels": "data.num_examples",
    "retain": "data.num_retain",
    "also_hold": "data.retain_concepts",
    "source": "data.source_filter",
    "forced": "data.prefill_tokens",
    "forced_rows": "data.prefills_per_example",
    "reply_tokens": "data.max_new_tokens",
    "layers": "lora.layers_to_transform",
    "modules": "lora.target_modules",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "rounds": "train.rounds",
    "steps": "train.steps_per_round",
    "batch": "train.batch_size",
    "at_once": "train.micro_batch_size",
    "lr": "train.learning_rate",
    "average": "train.ema_decay",
    "drift_guard": "train.max_drift",
    "guard": "train.max_drift",
    "patience": "train.patience",
    "cache_memory": "train.activation_cache",
    "adversarial_weight": "loss.adversarial_weight",
    "pair_weight": "loss.matching_weight",
    "supervised_weight": "loss.sft_weight",
    "retain_weight": "loss.retain_weight",
    "first_weight": "loss.first_token_weight",
    "match_prompt": "loss.match_prompt_suffix",
    "taps": "discriminator.layers",
    "reply_positions": "discriminator.positions",
    "discriminator_width": "discriminator.hidden_size",
    "discriminator_lr": "discriminator.learning_rate",
    "discriminator_first": "discriminator.warmup_steps",
    "discriminator_steps": "discriminator.steps_per_round",
    "discriminator_fresh": "discriminator.reset_each_round",
    "smoothing": "discriminator.label_smoothing",
    "perturb": "adversary.latent_epsilon",
    "perturb_steps": "adversary.latent_steps",
    "tamper": "adversary.finetune_steps",
    "tamper_lr": "adversary.finetune_learning_rate",
    "tamper_weight": "adversary.finetune_weight",
    "measure": "evaluation.suites",
    "measure_rows": "evaluation.limit",
}


@dataclass(frozen=True)
class Option:
    """A leaf field of the configuration, by its dotted path, such as `train.rounds`."""

    path: str
    field: FieldInfo

    @property
    def group(self) -> str:
        """The name of its group; empty for a top-level field."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """A unique Python identifier: the parameter of a command."""
        return self.path.replace(".", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line, the main one first."""
        stem = self.name if self.group in PREFIXED else self.path.rpartition(".")[2]
        main = self.extra.get("flag") or f"--{stem.replace('_', '-')}"
        return (main, *self.extra.get("aliases", ()))

    @property
    def flag(self) -> str:
        """Its main name on the command line."""
        return self.flags[0]

    @property
    def extra(self) -> dict[str, Any]:
        """The flag, the aliases and the search range that `core.config.option` stored."""
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @property
    def kind(self) -> Any:
        """The type of its values, without None."""
        annotation = self.field.annotation
        if get_origin(annotation) in (Union, UnionType):
            (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
        return annotation

    @property
    def is_list(self) -> bool:
        """Whether its value is a sequence."""
        return get_origin(self.kind) is tuple

    @property
    def is_mapping(self) -> bool:
        """Whether its value has further values by name."""
        kind = self.kind
        return get_origin(get_args(kind)[0] if get_origin(kind) is Annotated else kind) is dict

    @property
    def is_switch(self) -> bool:
        """Whether its value is true or false."""
        return self.kind is bool

    @property
    def metavar(self) -> str:
        """The placeholder of its value in a help text."""
        if get_origin(self.kind) is Literal:
            return "|".join(get_args(self.kind))
        if self.is_list:
            return "N,N,..." if int in get_args(self.kind) else "NAME,..."
        if self.is_mapping:
            return "NAME=VALUE|JSON"
        return {int: "N", float: "X", bool: ""}.get(self.kind, "TEXT")

    @property
    def help(self) -> str:
        """The description, with the default where it is informative."""
        default = self.field.default
        if default is None or default == () or isinstance(default, bool):
            return self.field.description or ""
        return f"{self.field.description} (default: {default})"

    def parse(self, value: Any) -> Any:
        """Split the text of a list option; pydantic converts texts to numbers."""
        if self.is_list and isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


def list_options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """The leaf fields of a model class and of its groups, in their order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from list_options(kind, f"{prefix}{name}.")
        else:
            yield Option(f"{prefix}{name}", field)


OPTIONS: tuple[Option, ...] = tuple(list_options(EditConfig))


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values by dotted path to nested mappings: `{"a.b": 1}` to `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *groups, last = path.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return nested


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert nested mappings to values by dotted path; the reverse of `nest`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
