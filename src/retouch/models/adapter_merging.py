"""Adapters at another strength, and several of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ConfigError, ModelError
from retouch.core.run_dir import find_adapter
from retouch.models.adapters import detach
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Steering
from retouch.models.load import adapter_errors


def has_strength(editable: EditableModel) -> bool:
    """Whether something acts on the model that has a strength: an adapter, or steering."""
    return editable.adapted or any(isinstance(one, Steering) for one in editable.interventions)


@contextmanager
def scaled(editable: EditableModel, strength: float) -> Iterator[None]:
    r"""Inside, the edit acts with another strength: $W + s\,\frac{\alpha}{r} BA$, and $h + s\,v$.

    At 0 the model is its base but for prompts, which have no strength; at 1 it is what it was.
    Afterwards every number is back, bit for bit.

    Raises:
        ConfigError: the strength is negative, or nothing on the model has one.
    """
    if strength < 0:
        raise ConfigError(f"A strength of {strength} is negative.", "Take 0 or more.")
    if not has_strength(editable):
        raise ConfigError(
            f"Nothing acts on {editable.name} whose strength could be set.",
            "Give an --adapter.",
        )
    from peft.tuners.lora import LoraLayer

    scalings = [m.scaling for m in editable.model.modules() if isinstance(m, LoraLayer)]
    steering = [one for one in editable.interventions if isinstance(one, Steering)]
    # In place, since the hooks hold these very tensors.
    vectors = [vector for one in steering for vector in one.vectors.values()]
    scalings_before = [dict(scaling) for scaling in scalings]
    vectors_before = [vector.detach().clone() for vector in vectors]
    try:
        for scaling in scalings:
            scaling.update({name: strength * value for name, value in scaling.items()})
        with torch.no_grad():
            for vector in vectors:
                vector.mul_(strength)
        yield
    finally:
        for scaling, before in zip(scalings, scalings_before, strict=True):
            scaling.update(before)
        with torch.no_grad():
            for vector, was in zip(vectors, vectors_before, strict=True):
                vector.copy_(was)


def compose(editable: EditableModel, folders: Sequence[Path], weights: Sequence[float]) -> None:
    r"""Put the weighted sum of saved adapters on a base model: $W + \sum_i w_i \Delta W_i$.

    The sum is exact, as one LoRA adapter whose rank is the sum of theirs: $[B_1, B_2]\,[A_1; A_2]$.
    They may differ in rank and in the layers they adapt. `models.adapters.save` writes it as a PEFT
    folder of its own.

    Args:
        editable: the base model, with nothing on it.
        folders: adapter folders, or runs that have one.
        weights: one for each.

    Raises:
        ConfigError: there are not as many weights as adapters, or none.
        ModelError: something acts on the model already, or an adapter does not fit it or is more
            than plain LoRA; the model is then the base again.
        RunError: a folder holds no adapter.
    """
    if len(folders) != len(weights) or not folders:
        raise ConfigError(
            f"There are {len(folders)} adapters and {len(weights)} weights.",
            "Give each adapter a weight.",
        )
    if editable.edited:
        raise ModelError(f"Something acts on {editable.name} already.", "Detach it first.")
    found = [find_adapter(folder) for folder in folders]
    names = [f"part{i}" for i in range(len(found))] if len(found) > 1 else ["default"]
    try:
        for name, folder in zip(names, found, strict=True):
            _load(editable, folder, name)
        _add_up(editable.model, names, weights)
    except BaseException:
        detach(editable)
        raise
    editable.model.requires_grad_(False)
    editable.model.eval()


def _load(editable: EditableModel, folder: Path, name: str) -> None:
    from peft import PeftConfig, PeftModel

    with adapter_errors(editable, folder):
        config = PeftConfig.from_pretrained(str(folder))
        if not _plain(config):
            raise ModelError(
                f"The adapter {folder} is more than plain LoRA on linear layers.",
                "Only such adapters add up; merge the others into a model.",
            )
        if editable.adapted:
            editable.model.load_adapter(str(folder), adapter_name=name)
        else:
            editable.model = PeftModel.from_pretrained(
                editable.model, str(folder), adapter_name=name
            )


def _plain(config: Any) -> bool:
    """Whether what the adapter adds is (alpha / r) B A on linear layers, and nothing else."""
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return False
    more = ("use_dora", "use_rslora", "modules_to_save", "lora_bias", "target_parameters")
    return config.bias == "none" and not any(getattr(config, name, None) for name in more)


@torch.no_grad()
def _add_up(model: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Leave one adapter, `default`, which is what PEFT saves into a folder itself."""
    from peft.tuners.lora import LoraLayer

    if len(names) == 1:  # PEFT concatenates two adapters at least
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            layer.lora_B["default"].weight.mul_(weights[0])
        return
    model.add_weighted_adapter(list(names), list(weights), "default", combination_type="cat")
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
