"""LoRA adapters on chosen blocks, through PEFT; adapter off is the reference model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ModelError
from retouch.models.copy import merged_copy
from retouch.models.load import LoadedModel


def attach(
    loaded: LoadedModel,
    layers: Sequence[int],
    modules: Sequence[str],
    rank: int,
    alpha: float,
    seed: int,
) -> None:
    """Put a fresh LoRA adapter on the linear layers of the blocks; it changes nothing yet.

    Raises:
        ModelError: a block does not exist, no linear layer matches `modules`, or PEFT would adapt
            others than those.
    """
    # Not before it is needed: what it brings along speaks up, and takes seconds to load.
    from peft import LoraConfig, get_peft_model

    names = loaded.layout.linears(loaded.model, layers, modules)
    loaded.settle(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded.model = get_peft_model(
            loaded.model,
            LoraConfig(
                r=rank, lora_alpha=alpha, target_modules=names, bias="none", task_type="CAUSAL_LM"
            ),
        )
    tuner = loaded.model.base_model
    adapted = {*tuner.targeted_module_names, *getattr(tuner, "targeted_parameter_names", ())}
    if adapted != set(names):
        loaded.model = loaded.model.unload()
        odd = ", ".join(sorted(adapted ^ set(names))[:3])
        raise ModelError(
            f"PEFT adapts other layers of {loaded.name} than it was asked to, such as {odd}.",
            "Choose other --modules.",
        )
    if loaded.name == "pocket":
        # A path of this machine has no business in an adapter that travels.
        loaded.model.peft_config["default"].base_model_name_or_path = "pocket"
    loaded.model.eval()


def detach(loaded: LoadedModel) -> None:
    """Take the adapter and the interventions off again: the base model, as it was."""
    while loaded.interventions:
        loaded.interventions.pop().detach()
    if loaded.adapted:
        loaded.model = loaded.model.unload()


def parameters(loaded: LoadedModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's trainable weights by name, in a fixed order."""
    return {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}


def save(loaded: LoadedModel, folder: Path) -> None:
    """Write the adapter as a plain PEFT folder, safetensors only.

    PEFT's card is left out: it is a form that nobody has filled in, and names the folder that the
    base model was loaded from.

    Raises:
        ModelError: an intervention acts on the model too, and would be lost.
    """
    _check_alone(loaded)
    # Said outright, since PEFT would otherwise ask the hub whether the vocabulary was resized.
    card = folder / "README.md"
    known = card.read_bytes() if card.exists() else None
    loaded.model.save_pretrained(str(folder), save_embedding_layers=False)
    if known is None:
        card.unlink(missing_ok=True)
    else:
        card.write_bytes(known)  # PEFT adds to a card that is there


def merged(loaded: LoadedModel) -> Any:
    """A transformers model with the adapter merged into the weights; `loaded` stays as it is.

    Raises:
        ModelError: an intervention acts on the model too, and would be lost; or the weights are
            quantised.
    """
    _check_alone(loaded)
    return merged_copy(loaded).model


def _check_alone(loaded: LoadedModel) -> None:
    if loaded.interventions:
        raise ModelError(
            "Steering or a prompt acts on the model beside its adapter, and no weights hold it.",
            "Take it off, or use a method that changes the weights alone.",
        )
