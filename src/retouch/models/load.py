"""Load a model and its tokenizer: `pocket`, a local folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.models import distributed
from retouch.models.chat_template import set_chat_template
from retouch.models.editable_model import EditableModel, prepare_tokenizer
from retouch.models.fsdp import shard
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.offload import OffloadPlan
from retouch.models.oom import is_out_of_memory
from retouch.models.weights import (
    UNREADABLE,
    build_skeleton,
    first_sentence,
    is_quantised,
    read_weights,
)

POCKET = Path(__file__).parent / "pocket"


def load(
    name: str = "pocket",
    config: LoadConfig | None = None,
    *,
    adapter: Path | str | None = None,
) -> EditableModel:
    """Load a model for inference, frozen, with an adapter if one is given.

    Args:
        name: `pocket`, a local folder, or a hub id.
        config: how it is loaded (default: the defaults of `LoadConfig`).
        adapter: a run directory, or a PEFT adapter folder.

    Raises:
        ModelError: the model, its tokenizer, the adapter or the device cannot be loaded, a library
            is missing, or the device memory limit is too low.
        ConfigError: the chat template is invalid, or options exclude each other.
    """
    from transformers import AutoTokenizer

    config = config or LoadConfig()
    check_load_config(config)
    device = find_device(config.device)
    dtype = find_dtype(config.dtype, device)
    path = str(POCKET) if name == "pocket" else name
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        plan = _plan_offload(path, dtype, device, config.max_device_bytes, options)
        model = read_weights(path, dtype, device, config.quantize, options, plan)
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The model {name!r} cannot be loaded: {first_sentence(error)}.",
            "Give `pocket`, a folder with config.json and safetensors, or a hub id.",
            code="model-unreadable",
        ) from None
    prepare_tokenizer(tokenizer, name)
    if config.chat_template is not None:
        set_chat_template(tokenizer, Path(config.chat_template))
    model.requires_grad_(False)
    model.eval()
    layout = find_layout(model)
    if config.fsdp:
        shard(model, layout, device)
    elif (plan is None or plan.whole) and not is_quantised(model):
        model.to(device)  # quantised and offloaded models are in place already
    editable = EditableModel(
        model,
        tokenizer,
        name,
        config.revision,
        device,
        layout,
        sharded=config.fsdp,
        offload_plan=plan,
        loaded_with=config,
    )
    if adapter is not None:
        add_adapter(editable, Path(adapter))
    return editable


def as_editable(model: Any, tokenizer: Any = None) -> EditableModel | None:
    """A model that is loaded already; None where it is given by its name.

    Args:
        model: a name, a transformers model, or an `EditableModel`.
        tokenizer: the tokenizer of a transformers model.

    Raises:
        ConfigError: a tokenizer is missing, or is given beside something that has one.
    """
    if model is None or isinstance(model, str | EditableModel):
        if tokenizer is not None:
            raise ConfigError(
                "`tokenizer` is for a transformers model; a name or an EditableModel has its own.",
                "Leave it out. A concept is the third argument, or `concept=...`.",
                code="tokenizer-unexpected",
            )
        return model if isinstance(model, EditableModel) else None
    if tokenizer is None:
        raise ConfigError(
            f"`tokenizer` is missing beside the {type(model).__name__}.",
            "Pass it: AutoTokenizer.from_pretrained(...).",
            code="tokenizer-missing",
        )
    return EditableModel.from_transformers(model, tokenizer)


def loaded_already(argument: str) -> ConfigError:
    """The error for load options beside a loaded model, which are in `argument`."""
    return ConfigError(
        f"`{argument}` has load options, and the model is loaded already.",
        "A loaded model keeps its own revision, dtype, quantisation and template; leave them out.",
        code="options-of-loaded-model",
    )


def check_load_config(config: LoadConfig) -> None:
    """Check the options that exclude each other.

    Raises:
        ConfigError: two of them are given.
    """
    pairs = (
        ("max_device_memory", config.max_device_memory is not None),
        ("fsdp", config.fsdp),
        ("quantize", config.quantize != "none"),
    )
    given = [name for name, is_given in pairs if is_given]
    if len(given) > 1:
        raise ConfigError(
            f"`{given[0]}` and `{given[1]}` cannot be combined.",
            "Leave one of them out.",
            code="options-exclusive",
        )


def _plan_offload(
    path: str, dtype: torch.dtype, device: torch.device, limit: int | None, options: dict[str, Any]
) -> OffloadPlan | None:
    """Where the parts of a model go under a device memory limit."""
    if limit is None:
        return None
    model = build_skeleton(path, dtype, options)
    return OffloadPlan(model, find_layout(model), device, limit, dtype.itemsize)


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one.

    Raises:
        ModelError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = distributed.local_device(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(
            f"The device {name!r} is not available: {reason}.",
            "Use the device `cpu`.",
            code="device-missing",
        ) from None
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is float32 on the CPU and bfloat16 on a GPU."""
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, auto if name == "auto" else name)
    return dtype


def add_adapter(editable: EditableModel, folder: Path) -> None:
    """Put a saved adapter on the model; a run directory stands for its adapter.

    Raises:
        ModelError: there is no adapter, or it does not fit the model.
    """
    from peft import PeftModel

    inside = folder / "adapter"
    folder = inside if inside.is_dir() else folder
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} is not an adapter: adapter_config.json is missing.",
            "Give a run directory or a PEFT adapter folder.",
            code="adapter-missing",
        )
    with adapter_errors(editable, folder):
        if editable.offload_plan is not None:
            editable.keep_on_device(_adapted_layers(folder, editable.layout))
            # PEFT would dispatch the whole model again, by a device map of its own.
            vars(editable.model).pop("hf_device_map", None)
        editable.model = PeftModel.from_pretrained(editable.model, str(folder))
    editable.model.requires_grad_(False)
    editable.model.eval()


def _adapted_layers(folder: Path, layout: ModelLayout) -> set[int]:
    """The layers that an adapter's configuration names; all of them where it names no layer."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    modules, inside = config.get("target_modules"), f"{layout.path}."
    names = [name for name in modules or () if isinstance(modules, list) and inside in name]
    numbers = {name.split(inside, 1)[1].split(".")[0] for name in names}
    return {int(number) for number in numbers if number.isdigit()} or set(range(layout.depth))


@contextmanager
def adapter_errors(editable: EditableModel, folder: Path) -> Iterator[None]:
    """Report errors of an adapter's files as one error that names adapter and model.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The adapter {folder} does not fit {editable.name}: {reason}",
            "Load it on the model that it was trained for.",
            code="adapter-mismatch",
        ) from None
