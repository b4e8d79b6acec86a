"""LoRA adapters on chosen layers, through PEFT; with the adapter off, the model is its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retouch.core.config import LoraConfig
from retouch.core.errors import ModelError
from retouch.core.model_names import public_name
from retouch.core.run_dir import ADAPTER_CONFIG
from retouch.models.base_record import save_base_record
from retouch.models.editable_model import IN_MEMORY, EditableModel

SETS = ("target_modules", "exclude_modules", "modules_to_save")  # of an adapter's configuration


def attach(editable: EditableModel, layers: Sequence[int], config: LoraConfig, seed: int) -> None:
    """Attach a new LoRA adapter to the linear layers of blocks; it changes nothing yet.

    `seed` determines the initial weights. The layers of `config` are not used.

    Raises:
        ModelError: a layer does not exist, no linear layer matches `target_modules`, or PEFT would
            adapt others than those.
    """
    # Imported when needed: it takes seconds to load.
    import peft

    names = editable.layout.linears(editable.model, layers, config.target_modules)
    editable.keep_on_device(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        editable.model = peft.get_peft_model(
            editable.model,
            peft.LoraConfig(
                r=config.r,
                lora_alpha=config.lora_alpha,
                target_modules=names,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    tuner = editable.model.base_model
    adapted = {*tuner.targeted_module_names, *getattr(tuner, "targeted_parameter_names", ())}
    if adapted != set(names):
        editable.model = editable.model.unload()
        unexpected = ", ".join(sorted(adapted ^ set(names))[:3])
        message = f"PEFT adapts other layers of {editable.name} than given, such as {unexpected}."
        raise ModelError(message, "Set other `target_modules`.", code="adapter-mismatch")
    editable.model.eval()


def detach(editable: EditableModel) -> None:
    """Remove the adapter and the interventions: the base model, as it was."""
    while editable.interventions:
        editable.interventions.pop().detach()
    if editable.adapted:
        editable.model = editable.model.unload()


@torch.no_grad()
def scale(editable: EditableModel, strength: float) -> None:
    """Multiply the adapter's update by `strength`, in its weights."""
    for name, weight in editable.model.named_parameters():
        if "lora_B" in name:
            weight.mul_(strength)


def parameters(editable: EditableModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's trainable weights by name, in a fixed order."""
    return {n: p for n, p in editable.model.named_parameters() if p.requires_grad}


def save(editable: EditableModel, folder: Path) -> None:
    """Write the adapter as a PEFT folder, safetensors only, with a record of its base model.

    PEFT's model card is left out: it is an empty template that names the folder of the base model.

    Raises:
        ModelError: an intervention acts on the model too, and would be lost.
    """
    _check_no_interventions(editable)
    card = folder / "README.md"
    existing = card.read_bytes() if card.exists() else None
    # Set explicitly, since PEFT would otherwise ask the hub whether the vocabulary was resized.
    editable.model.save_pretrained(str(folder), save_embedding_layers=False)
    save_base_record(editable, folder)
    for file in folder.rglob(ADAPTER_CONFIG):
        file.write_text(_comparable(file.read_text("utf-8"), editable), "utf-8")
    card.unlink(missing_ok=True)
    if existing is not None:  # which PEFT has appended to
        card.write_bytes(existing)


def _comparable(config: str, editable: EditableModel) -> str:
    """The configuration of an adapter as it is for every process and on every machine.

    PEFT writes sets in the order of their hashes, and the folder that the model was loaded from,
    which is one of this machine's, such as the cache.
    """
    values = json.loads(config)
    for name in SETS:
        if isinstance(values.get(name), list):
            values[name].sort()
    recorded = str(values.get("base_model_name_or_path") or "")
    name = recorded if editable.name == IN_MEMORY else editable.name
    values["base_model_name_or_path"] = public_name(name) or None
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def merged(editable: EditableModel) -> Any:
    """A transformers model with the adapter merged; `editable` stays as it is.

    Raises:
        ModelError: an intervention acts on the model too, or the weights are quantised.
    """
    _check_no_interventions(editable)
    return editable.merged_copy().model


def _check_no_interventions(editable: EditableModel) -> None:
    if editable.interventions:
        message = "Steering or a prompt acts on the model too and would be lost."
        hint = "Detach it, or use a method that changes the weights alone."
        raise ModelError(message, hint, code="intervention-active")
