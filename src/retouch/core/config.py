"""One schema for the edit: the command line, the configuration file and the run's record."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from retouch.core.errors import ConfigError
from retouch.core.size import parse_size
from retouch.core.types import Direction


class EditConfig(BaseModel):
    """Everything that decides an edit. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("cache_memory", "device_memory")
    @classmethod
    def _is_size(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                parse_size(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None  # the one kind that pydantic reports
        return text

    @property
    def cache_bytes(self) -> int | None:
        """`cache_memory` in bytes."""
        return None if self.cache_memory is None else parse_size(self.cache_memory)

    @property
    def device_bytes(self) -> int | None:
        """`device_memory` in bytes."""
        return None if self.device_memory is None else parse_size(self.device_memory)

    model: str = Field("pocket", description="`pocket`, a local folder, or a hub id")
    revision: str | None = Field(None, description="the hub revision (branch, tag or commit)")
    concept: str = Field("safety", description="a built-in concept, or a CSV, JSONL or YAML file")
    direction: Direction = Field("raise", description="raise the concept or lower it")
    seed: int = Field(0, ge=0, description="decides rows, initial weights and batches")
    labels: int = Field(128, ge=2, description="labelled rows used, of source and of target each")
    retain: int = Field(256, ge=0, description="rows of the retain set used")
    also_hold: tuple[str, ...] = Field(
        (),
        description="other concepts whose rows are held as well, as many as the retain set has, so "
        "that edits of them and this one may be added up",
    )

    source: str | None = Field(
        None,
        description="training rows to move in place of the concept's own: LABEL, or LABEL:GROUP",
    )
    forced: int = Field(
        0,
        ge=0,
        description="up to so many tokens of an unwanted reply are forced before the wanted one, "
        "in further source rows; 0 makes none",
    )
    forced_rows: int = Field(
        2, ge=1, description="such rows for each source row, half of them with the wanted prompt"
    )

    layers: tuple[int, ...] | None = Field(
        None, description="blocks that get adapters; none given: found by causal patching"
    )
    taps: tuple[int, ...] | None = Field(
        None, description="blocks whose outputs the discriminators read; none given: found"
    )
    modules: tuple[str, ...] = Field(
        (), description="ends of the names of the linear layers to adapt; none given: all"
    )
    rank: int = Field(8, ge=1, description="rank of the LoRA adapters")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")

    rounds: int = Field(8, ge=1, description="rounds of the game")
    steps: int = Field(8, ge=1, description="generator steps a round")
    batch: int = Field(32, ge=1, description="rows a generator step")
    lr: float = Field(5e-3, gt=0, description="the generator's learning rate (Adam)")
    average: float = Field(
        0.9, ge=0, lt=1, description="decay of the moving average of the adapters' weights"
    )
    adversarial_weight: float = Field(1.0, ge=0, description="weight of fooling the discriminators")
    pair_weight: float = Field(1.0, ge=0, description="weight of matching paired representations")
    supervised_weight: float = Field(
        0.0, ge=0, description="weight of learning the wanted replies word by word"
    )
    first_weight: float = Field(
        1.0, gt=0, description="weight of the first position of a wanted reply against the others"
    )
    match_prompt: bool = Field(
        False, description="match paired representations at the words that both prompts end in, too"
    )
    perturb: float = Field(
        0.0,
        ge=0,
        description="radius of the worst push of the segment's input that the adapter has to "
        "stand, as a share of each state's norm; 0 makes none",
    )
    perturb_steps: int = Field(2, ge=1, description="gradient steps in which a push is found")
    tamper: int = Field(
        0,
        ge=0,
        description="training steps of an adversary, new in every round, whose changes the adapter "
        "has to stand; 0 makes none",
    )
    tamper_lr: float = Field(2e-3, gt=0, description="the adversary's learning rate (Adam)")
    tamper_weight: float = Field(
        0.5, ge=0, description="weight of giving the wanted replies under an adversary's changes"
    )
    retain_weight: float = Field(30.0, ge=0, description="weight of holding the retain set")
    retain_reply_weight: float = Field(
        1.0, gt=0, description="weight of a retain reply's positions against its prompt's"
    )
    reply_positions: int = Field(
        4, ge=1, description="positions the discriminators read: the decision and the first replies"
    )

    discriminator_width: int = Field(256, ge=0, description="hidden width; 0 is a linear one")
    discriminator_lr: float = Field(1e-3, gt=0, description="the discriminators' learning rate")
    discriminator_first: int = Field(60, ge=1, description="discriminator steps before round one")
    discriminator_steps: int = Field(20, ge=1, description="discriminator steps a round")
    discriminator_fresh: bool = Field(
        False, description="train the discriminators from scratch every round, as the paper does"
    )
    smoothing: float = Field(0.1, ge=0, lt=0.5, description="label smoothing of the discriminators")

    drift_guard: float = Field(
        0.01, gt=0, description="a round counts only below this drift, nats a token"
    )
    patience: int = Field(4, ge=1, description="rounds without a better one before the edit stops")
    reply_tokens: int = Field(32, ge=1, description="the longest reply generated, in tokens")

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the loaded weights; auto is float32 on CPU, bfloat16 on GPU"
    )
    at_once: int | None = Field(
        None,
        ge=1,
        description="rows that run at once, where a batch is too much; none given: the whole "
        "batch, halved whenever memory runs out",
    )
    cache_memory: str | None = Field(
        None,
        description="memory for the states that are kept, such as 8GiB; what is beyond lies in a "
        "memory-mapped file; none given: half of what is free",
    )
    device_memory: str | None = Field(
        None,
        description="how much of the device the model may take, such as 24GiB; blocks that find no "
        "room come when they are needed; none given: all of the model stays there",
    )
    shard: bool = Field(
        False, description="processes that edit together share the frozen weights out (FSDP)"
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="bits of the frozen weights in training, through bitsandbytes"
    )
    chat_template: str | None = Field(
        None,
        description="a file with the Jinja chat template to use; none given: the tokenizer's own",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    allow_weakening: str | None = Field(
        None, description="the reason for lowering safety; it is written on the model card"
    )
    measure: Literal["all", "own", "nothing"] = Field(
        "all",
        description="what is measured before and after, on the test splits: all built-in concepts, "
        "the edited one alone with what it uses, or nothing",
    )
    measure_rows: int = Field(
        64, ge=0, description="rows a metric is measured on at the most; 0 is all of the split"
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML or TOML configuration file as a mapping.

    Raises:
        ConfigError: the file is missing, does not parse, or is no mapping.
    """
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping.", "Write `key: value` lines.")
    return values


def resolve(*layers: Mapping[str, Any], where: str = "the configuration") -> EditConfig:
    """Lay mappings over each other, the last one on top, and validate the result.

    Raises:
        ConfigError: names every key that is unknown or has a wrong value.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    try:
        return EditConfig(**merged)
    except ValidationError as error:
        known = ", ".join(sorted(EditConfig.model_fields))
        lines = []
        unknown = False
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                unknown = True
                lines.append(f"unknown key `{key}`")
            else:
                # What our own validators say is a sentence that has the value in it.
                own = problem["msg"].removeprefix("Value error, ")
                told = own if own != problem["msg"] else f"{own}, not {problem['input']!r}"
                lines.append(f"`{key}`: {told.rstrip('.')}")
        mend = f"The keys are: {known}." if unknown else ""
        raise ConfigError(f"In {where}: {'; '.join(lines)}.", mend) from None


def dump_yaml(config: EditConfig) -> str:
    """The configuration as YAML, every field described; reads back to an equal one."""
    lines = []
    for name, field in EditConfig.model_fields.items():
        value = getattr(config, name)
        plain = list(value) if isinstance(value, tuple) else value
        entry = yaml.safe_dump({name: plain}, default_flow_style=False, width=10_000).strip()
        lines.append(f"# {field.description}\n{entry}")
    return "\n".join(lines) + "\n"
