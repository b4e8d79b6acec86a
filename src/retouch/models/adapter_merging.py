"""Adapters at another strength, and the weighted sum of several adapters as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ConfigError, ModelError
from retouch.core.run_dir import find_adapter
from retouch.models.adapter_files import read_adapter_config
from retouch.models.adapters import detach
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Steering
from retouch.models.load import add_adapter


def has_strength(editable: EditableModel) -> bool:
    """Whether the model has an adapter or steering, whose strength can be scaled."""
    return editable.adapted or any(isinstance(one, Steering) for one in editable.interventions)


@contextmanager
def scaled(editable: EditableModel, strength: float) -> Iterator[None]:
    r"""Scale the edit inside the context: $W + s\,\frac{\alpha}{r} BA$, and $h + s\,v$.

    At 0 the model is its base, except for added prompts, which have no strength; at 1 the edit is
    as it was. All values are restored bit for bit on exit.

    Raises:
        ConfigError: `strength` is negative, or nothing on the model has a strength.
    """
    if strength < 0:
        message = f"`strength` must be at least 0, got {strength:g}."
        hint = "Give 0 for the base model and 1 for the edit."
        raise ConfigError(message, hint, code="strength-negative")
    if not has_strength(editable):
        message = f"Neither an adapter nor steering acts on {editable.name} and could be scaled."
        raise ConfigError(message, "Load the model with an adapter.", code="strength-missing")
    from peft.tuners.lora import LoraLayer

    layers = [m for m in editable.model.modules() if isinstance(m, LoraLayer)]
    scalings = [(layer.scaling, dict(layer.scaling)) for layer in layers]
    steering = [one for one in editable.interventions if isinstance(one, Steering)]
    # Changed in place, since the hooks refer to these very tensors.
    vectors = [vector.detach() for one in steering for vector in one.vectors.values()]
    originals = [vector.clone() for vector in vectors]
    try:
        for scaling, before in scalings:
            scaling.update({name: strength * value for name, value in before.items()})
        for vector in vectors:
            vector.mul_(strength)
        yield
    finally:
        for scaling, before in scalings:
            scaling.update(before)
        for vector, original in zip(vectors, originals, strict=True):
            vector.copy_(original)


def merge_adapters(
    editable: EditableModel, folders: Sequence[Path], weights: Sequence[float]
) -> list[list[float]]:
    r"""Put the weighted sum of saved adapters on a base model: $W + \sum_i w_i \Delta W_i$.

    The sum is exact: one LoRA adapter whose rank is the sum of the ranks, $[B_1, B_2]\,[A_1; A_2]$.
    The adapters may differ in rank and in the layers they adapt. `models.adapters.save` writes the
    result as a PEFT folder. After an error the model is the base again.

    Returns:
        The cosine of each pair of updates over all layers. Near 0 they change different directions,
        which a sum needs to keep both effects, and which does not suffice for it.

    Raises:
        ConfigError: there is no folder, or not one weight for each.
        ModelError: the model is edited already, or an adapter does not fit it or is not plain LoRA.
        RunError: a folder has no adapter.
    """
    if len(folders) != len(weights) or not folders:
        message = f"`weights` must have a value per adapter, got {len(weights)} for {len(folders)}."
        hint = "Give at least one adapter, and a weight for each."
        raise ConfigError(message, hint, code="weights-count")
    if editable.edited:
        message = f"{editable.name} has an adapter or an intervention already."
        hint = "Detach it first (`models.adapters.detach`)."
        raise ModelError(message, hint, code="model-edited")
    names = [f"part{i}" for i in range(len(folders))] if len(folders) > 1 else ["default"]
    try:
        for name, folder in zip(names, map(find_adapter, folders), strict=True):
            if not _is_plain_lora(read_adapter_config(folder)):
                message = f"The adapter {folder} is not plain LoRA on linear layers."
                hint = "Only plain LoRA adapters can be summed; merge others into a model."
                raise ModelError(message, hint, code="adapter-unsupported")
            add_adapter(editable, folder, name)
        overlaps = _overlaps(editable.model, names)
        _sum(editable.model, names, weights)
    except BaseException:
        detach(editable)
        raise
    editable.model.requires_grad_(False).eval()
    return overlaps


def _is_plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether the adapter adds (alpha / r) B A to linear layers, and nothing else."""
    more = ("use_dora", "use_rslora", "modules_to_save", "lora_bias", "target_parameters")
    return config.get("bias", "none") == "none" and not any(config.get(name) for name in more)


@torch.no_grad()
def _overlaps(model: Any, names: Sequence[str]) -> list[list[float]]:
    r"""$\langle \Delta W_i, \Delta W_j \rangle$ of each pair, divided by both norms."""
    from peft.tuners.lora import LoraLayer

    count = range(len(names))
    products = torch.zeros(len(names), len(names), dtype=torch.float64)
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        factors = {
            i: (layer.lora_A[name].weight, layer.scaling[name] * layer.lora_B[name].weight)
            for i, name in enumerate(names)
            if name in layer.lora_A
        }
        for i, (a, b) in factors.items():
            for j, (other_a, other_b) in factors.items():
                product = (a.double() @ other_a.double().T) * (b.double().T @ other_b.double())
                products[i, j] += product.sum().cpu()
    sizes = products.diagonal().clamp_min(1e-24).sqrt()
    cosines = products / sizes[:, None] / sizes
    return [[float(cosines[i, j]) for j in count] for i in count]


@torch.no_grad()
def _sum(model: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Replace the adapters by their sum, named `default`, which PEFT saves without a subfolder."""
    from peft.tuners.lora import LoraLayer

    if len(names) == 1:  # PEFT concatenates at least two adapters
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            layer.lora_B["default"].weight.mul_(weights[0])
        return
    model.add_weighted_adapter(list(names), list(weights), "default", combination_type="cat")
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
