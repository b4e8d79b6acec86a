"""Which linear layers PEFT can put an adapter on that really acts, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Mamba's step size: the mixer multiplies by the weight itself and never calls the layer, so that
# an adapter around it would do nothing until it is merged.
_NEVER_CALLED = ("dt_proj",)


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps one tensor to one tensor linearly, quantised or not.

    A router that only inherits from `nn.Linear` and returns its choice of experts is none.
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
        tried = module(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
    return isinstance(tried, torch.Tensor) and tried.shape == (1, module.out_features)


def reachable(model: Any, names: Iterable[str]) -> list[str]:
    """Those of the named linear layers that PEFT adapts as they are named.

    Left out is what PEFT refuses (`out_proj` of some Mamba models, whose fused kernels go around
    it), and what it takes for something else: since transformers fuses experts, PEFT understands
    `down_proj` in a mixture-of-experts model as all experts of all blocks, also where the name is
    that of a dense layer or a shared expert of one block.
    """
    names = list(names)
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = {leaf for leaf in leaves if leaf not in _NEVER_CALLED and _taken(base, leaf)}
    return [name for name in names if name.rsplit(".", 1)[-1] in taken]


def _taken(model: Any, leaf: str) -> bool:
    """Whether PEFT adapts the layers of this name, and leaves the name as it is."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    config = LoraConfig(target_modules=[leaf])
    try:
        refuse = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
        if refuse is not None:
            refuse(config, model, leaf)
        try:
            from peft.utils.transformers_weight_conversion import (
                convert_peft_config_for_transformers as convert,
            )
        except ImportError:  # an older PEFT converts nothing
            return True
        convert(config, model, None)
    except ValueError:
        return False
    return leaf in config.target_modules
