"""Load a model and its tokenizer: `pocket`, a local folder, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ModelError
from retouch.core.types import Message
from retouch.models import ranks
from retouch.models.intervention import Intervention
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.sharding import shard as share_out

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
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    device: torch.device
    layout: ModelLayout
    interventions: list[Intervention] = field(default_factory=list)
    sharded: bool = False

    @property
    def adapted(self) -> bool:
        """Whether an adapter is attached."""
        return hasattr(self.model, "disable_adapter")

    @property
    def edited(self) -> bool:
        """Whether anything acts on the base model: an adapter or an intervention."""
        return self.adapted or bool(self.interventions)

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
    shard: bool = False,
) -> LoadedModel:
    """Load a model for inference, frozen, with an adapter on top if one is given.

    With `shard`, every process of the edit keeps a part of the weights (`models.sharding`).

    Raises:
        ModelError: the model, its tokenizer, the adapter or the device is not to be had.
        ConfigError: it is to be shared out, and there is one process alone.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = find_device(device)
    kind = find_dtype(dtype, where)
    path = str(POCKET) if name == "pocket" else name
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=kind, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {name!r} cannot be loaded: {reason}",
            "Give `pocket`, a folder with config.json and safetensors, or a hub id.",
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.requires_grad_(False)
    model.eval()
    layout = find_layout(model)
    if shard:
        share_out(model, layout, where)
    else:
        model.to(where)
    loaded = LoadedModel(model, tokenizer, name, revision, where, layout, sharded=shard)
    if adapter is not None:
        _add_adapter(loaded, adapter)
    return loaded


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
        loaded.model = PeftModel.from_pretrained(loaded.model, str(folder))
    loaded.model.requires_grad_(False)
    loaded.model.eval()


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
