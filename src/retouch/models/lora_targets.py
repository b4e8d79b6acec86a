"""Which linear layers PEFT can adapt so that the adapter acts, and acts on nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Mamba's step size: the mixer multiplies by the weight itself and never calls the layer, so that
# an adapter on it would do nothing until it is merged.
_NEVER_CALLED = ("dt_proj",)


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps one tensor to one tensor linearly, quantised or not.

    A router that inherits from `nn.Linear` and returns its choice of experts is not.
    """
    if type(module).__name__ == "Conv1D":
        return True
    if not isinstance(module, nn.Linear):
        return False
    kind = type(module)
    if kind.forward is nn.Linear.forward or kind.__module__.startswith("bitsandbytes"):
        return True
    with torch.no_grad():
        weight = module.weight
        output = module(
            torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device)
        )
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """The input and output size of a linear layer."""
    if isinstance(module, nn.Linear):  # a quantised weight has another shape
        return int(module.in_features), int(module.out_features)
    transposed: Any = module.weight  # of a Conv1D (GPT-2)
    return int(transposed.shape[0]), int(transposed.shape[1])


def adaptable(model: Any, names: Iterable[str]) -> list[str]:
    """Those of the named linear layers that PEFT adapts under exactly these names.

    Left out is what PEFT rejects (`out_proj` of some Mamba models, whose fused kernels bypass it),
    and what it converts to something else: since transformers fuses experts, PEFT reads `down_proj`
    in a mixture-of-experts model as all experts of all blocks, even where the name is that of a
    dense layer or a shared expert.
    """
    names = list(names)
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = {one for one in suffixes if one not in _NEVER_CALLED and _is_accepted(base, one)}
    return [name for name in names if name.rsplit(".", 1)[-1] in accepted]


def _is_accepted(model: Any, suffix: str) -> bool:
    """Whether PEFT adapts the layers of this name, and leaves the name as it is."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    config = LoraConfig(target_modules=[suffix])
    try:
        check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
        if check is not None:
            check(config, model, suffix)
        try:
            from peft.utils.transformers_weight_conversion import (
                convert_peft_config_for_transformers as convert,
            )
        except ImportError:  # an older PEFT converts nothing
            return True
        convert(config, model, None)
    except ValueError:
        return False
    return suffix in config.target_modules
