"""Load a model and its tokenizer: `pocket`, a local folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ConfigError, ModelError
from retouch.core.types import Message
from retouch.models import ranks
from retouch.models.intervention import Intervention
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.memory import ran_out
from retouch.models.placement import Placement
from retouch.models.sharding import shard as share_out
from retouch.models.template import give_template
from retouch.models.weights import (
    UNREADABLE,
    Quantize,
    first_words,
    is_quantised,
    outline,
    read_weights,
)

POCKET = Path(__file__).parent.parent / "pocket" / "weights"


@dataclass
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        model: the transformers model, or PEFT's wrapping of it once it has an adapter.
        tokenizer: its tokenizer, padding on the right.
        name: what the user called it.
        revision: the hub revision, if one was asked for.
        device: where its inputs go.
        layout: where its blocks are.
        interventions: what acts on the model besides an adapter: steering, a prompt.
        sharded: whether several processes have a part of the weights each.
        placement: where the parts of the model are, where the device's memory has a limit.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    device: torch.device
    layout: ModelLayout
    interventions: list[Intervention] = field(default_factory=list)
    sharded: bool = False
    placement: Placement | None = None

    @property
    def adapted(self) -> bool:
        """Whether an adapter is attached."""
        return hasattr(self.model, "disable_adapter")

    @property
    def edited(self) -> bool:
        """Whether anything acts on the base model: an adapter or an intervention."""
        return self.adapted or bool(self.interventions)

    @property
    def quantised(self) -> bool:
        """Whether the base model's weights are quantised."""
        return is_quantised(self.model)

    @property
    def loader(self) -> str:
        """The transformers class that loads the base model."""
        base = self.model.get_base_model() if self.adapted else self.model
        sees = type(base).__name__.endswith("ForConditionalGeneration")
        return "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"

    @property
    def templated(self) -> bool:
        """Whether the tokenizer has a chat template; without one chats are written plainly."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model: adapters and interventions are off inside."""
        acting = [one for one in self.interventions if one.active]
        for one in acting:
            one.active = False
        try:
            with self.model.disable_adapter() if self.adapted else nullcontext():
                yield
        finally:
            for one in acting:
                one.active = True

    def intervene(self, intervention: Intervention) -> None:
        """Let something act on the model from now on."""
        intervention.attach(self.blocks)
        self.interventions.append(intervention)

    def rewritten(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        """The prompt as the model is given it: with what the active interventions add."""
        prompt = tuple(prompt)
        for one in self.interventions:
            if one.active:
                prompt = one.rewrite(prompt)
        return prompt

    @property
    def room(self) -> int | None:
        """Bytes of the device beside the weights, where a limit is set."""
        return None if self.placement is None else self.placement.room

    def settle(self, blocks: Iterable[int]) -> None:
        """Let blocks be on the device from now on, since they are to be trained.

        Raises:
            ModelError: they do not fit into the limit that is set.
        """
        if self.placement is not None:
            self.placement.settle(self.model, blocks)

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The decoder's blocks, in order."""
        return self.layout.blocks(self.model)


def load(
    name: str = "pocket",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    chat_template: Path | str | None = None,
    quantize: Quantize = "none",
    device_memory: int | None = None,
    shard: bool = False,
) -> LoadedModel:
    """Load a model for inference, frozen, with an adapter on top if one is given.

    Args:
        name: `pocket`, a local folder, or a hub id.
        revision: the hub revision.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of the weights; `auto` is float32 on the CPU and bfloat16 on a GPU.
        trust_remote_code: run code that comes with the model.
        adapter: a run directory, or an adapter of PEFT.
        chat_template: a file whose Jinja template takes the place of the tokenizer's own.
        quantize: bits of the frozen weights, through bitsandbytes.
        device_memory: bytes of the device that the model and all else may take; blocks that find
            no room come when they are needed (`models.placement`).
        shard: whether every process of the edit keeps a part of the weights (`models.sharding`).

    Raises:
        ModelError: the model, its tokenizer, the adapter or the device is not to be had, what
            quantising needs is not, or the device's memory is too little.
        ConfigError: the chat template cannot be read, or is none; or options exclude each other.
    """
    from transformers import AutoTokenizer

    check_options(device_memory=device_memory, quantize=quantize, shard=shard)
    where = find_device(device)
    kind = find_dtype(dtype, where)
    path = str(POCKET) if name == "pocket" else name
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        placement = _plan(path, kind, where, device_memory, options)
        model = read_weights(path, kind, where, quantize, options, placement)
    except UNREADABLE as error:
        if ran_out(error):
            raise
        raise ModelError(
            f"The model {name!r} cannot be loaded: {first_words(error)}.",
            "Give `pocket`, a folder with config.json and safetensors, or a hub id.",
        ) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name} has no token that ends a turn.",
            "Set `eos_token` in its tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if chat_template is not None:
        give_template(tokenizer, Path(chat_template))
    model.requires_grad_(False)
    model.eval()
    layout = find_layout(model)
    if shard:
        share_out(model, layout, where)
    elif (placement is None or placement.whole) and not is_quantised(model):
        model.to(where)  # the others are where they belong
    loaded = LoadedModel(
        model, tokenizer, name, revision, where, layout, sharded=shard, placement=placement
    )
    if adapter is not None:
        _add_adapter(loaded, adapter)
    return loaded


def check_options(*, device_memory: int | None, quantize: Quantize, shard: bool) -> None:
    """Look at those options of `load` of which one excludes the other.

    Raises:
        ConfigError: two of them are given.
    """
    if device_memory is not None and (shard or quantize != "none"):
        raise ConfigError(
            "`--device-memory` streams whole weights: it goes with neither --shard nor --quantize.",
            "Leave one of them out.",
        )
    if shard and quantize != "none":
        raise ConfigError(
            "`--shard` shares whole weights out over processes: it does not go with --quantize.",
            "Leave one of them out.",
        )


def _plan(
    path: str, dtype: torch.dtype, device: torch.device, budget: int | None, options: dict[str, Any]
) -> Placement | None:
    """Where the parts of a model go within a budget of the device."""
    if budget is None:
        return None
    model = outline(path, dtype, options)
    return Placement(model, find_layout(model), device, budget, dtype.itemsize)


def find_device(name: str) -> torch.device:
    """The device of `--device`; `auto` is the GPU where there is one.

    Raises:
        ModelError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = ranks.device(name)
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"There is no device {name!r}: {reason}.", "Try --device cpu.") from None
    return where


def find_dtype(name: str, where: torch.device) -> torch.dtype:
    """The type of `--dtype`; `auto` is float32 on the CPU and bfloat16 on a GPU."""
    auto = "bfloat16" if where.type == "cuda" else "float32"
    kind: torch.dtype = getattr(torch, auto if name == "auto" else name)
    return kind


def _add_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Put a saved adapter on the model; a run directory stands for its adapter."""
    from peft import PeftModel

    inside = folder / "adapter"
    folder = inside if inside.is_dir() else folder
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} is no adapter: it has no adapter_config.json.",
            "Give a run directory or a PEFT adapter folder.",
        )
    with fitting(loaded, folder):
        if loaded.placement is not None:
            loaded.settle(_adapted_blocks(folder, loaded.layout))
            # PEFT would place the whole model anew, by a plan of its own.
            vars(loaded.model).pop("hf_device_map", None)
        loaded.model = PeftModel.from_pretrained(loaded.model, str(folder))
    loaded.model.requires_grad_(False)
    loaded.model.eval()


def _adapted_blocks(folder: Path, layout: ModelLayout) -> set[int]:
    """The blocks that an adapter's configuration names; all of them where it names only layers."""
    named = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("target_modules")
    inside = f"{layout.path}."
    names = [name for name in named or () if isinstance(named, list) and inside in name]
    numbers = {name.split(inside, 1)[1].split(".")[0] for name in names}
    return {int(number) for number in numbers if number.isdigit()} or set(range(layout.depth))


@contextmanager
def fitting(loaded: LoadedModel, folder: Path) -> Iterator[None]:
    """Inside, what goes wrong with an adapter's files means that it does not fit the model.

    Raises:
        ModelError: names the adapter and the model.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The adapter {folder} does not fit {loaded.name}: {reason}",
            "Load it on the model that it was trained for.",
        ) from None
