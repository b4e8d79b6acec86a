"""Find the blocks of any decoder and the linear layers in them, without a list of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from retouch.core.errors import ModelError

# Mamba's step size: the mixer multiplies by the weight itself and never calls the layer, so that
# an adapter on it would do nothing until it is merged.
_NEVER_CALLED = ("dt_proj",)


@dataclass(frozen=True)
class ModelLayout:
    """The location of a decoder's blocks."""

    path: str  # the full name of the block list, such as `model.layers`
    depth: int  # the number of blocks

    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks of a model with this layout, wrapped by PEFT or not."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return list(base.get_submodule(self.path))

    def linears(
        self, model: Any, layers: Sequence[int], target_modules: Sequence[str] = ()
    ) -> list[str]:
        """Full names of the linear layers of some blocks that LoRA can adapt.

        Fused experts are three-dimensional parameters and not linear layers: experts and routers
        stay unadapted, and so do layers that share their names. `unadapted` lists the rest.
        `target_modules` are suffixes of the names to keep, such as `q_proj` (default: all names).

        Raises:
            ModelError: a block does not exist, or no linear layer matches.
        """
        missing = [i for i in layers if not 0 <= i < self.depth]
        if missing:
            message = f"Layer {missing[0]} does not exist: there are layers 0 to {self.depth - 1}."
            raise ModelError(message, "Set other `layers_to_transform`.", code="layer-missing")
        blocks = self.blocks(model)
        linear = [
            f"{self.path}.{i}.{name}"
            for i in layers
            for name, module in blocks[i].named_modules()
            if is_linear(module)
        ]
        names = adaptable(model, linear)
        matching = [name for name in names if name.endswith(tuple(target_modules or ("",)))]
        if not matching:
            suffixes = sorted({name.rsplit(".", 1)[1] for name in names})
            ends = ", ".join(target_modules) or "*"
            message = f"No adaptable linear layer of {list(layers)} has a name that ends in {ends}."
            hint = f"Set other `target_modules`; available: {', '.join(suffixes) or 'none'}."
            raise ModelError(message, hint, code="module-missing")
        return matching

    def unadapted(self, model: Any, layers: Sequence[int]) -> dict[str, int]:
        """Numbers of elements of the weights that `linears` cannot adapt, by full name.

        Experts, routers and convolutions of a base model, but not norms and biases.
        """
        adapted = set(self.linears(model, layers))
        blocks = self.blocks(model)
        return {
            f"{self.path}.{i}.{name}": parameter.numel()
            for i in layers
            for name, parameter in blocks[i].named_parameters()
            if parameter.dim() > 1 and f"{self.path}.{i}.{name.rsplit('.', 1)[0]}" not in adapted
        }


def find_layout(model: Any) -> ModelLayout:
    """Find the only `ModuleList` of the decoder that is as long as its configuration says.

    Raises:
        ModelError: there is no such list, or more than one; names the candidates.
    """
    depth = int(model.config.get_text_config().num_hidden_layers)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    modules = decoder.named_modules()
    lists = {name: len(module) for name, module in modules if isinstance(module, nn.ModuleList)}
    matching = [name for name, length in lists.items() if length == depth]
    if len(matching) != 1:
        expected = f"exactly one list of {depth} blocks, found {len(matching)}"
        message = f"{type(model).__name__} must have {expected}."
        found = ", ".join(f"{name} ({length})" for name, length in lists.items()) or "none"
        hint = f"Lists of modules: {found}. This architecture is not supported."
        raise ModelError(message, hint, code="architecture-unsupported")
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    return ModelLayout(".".join(part for part in (prefix, matching[0]) if part), depth)


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
        output = module(module.weight.new_zeros(1, module.in_features))
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """The input and output size of a linear layer."""
    if isinstance(module, nn.Linear):  # a quantised weight has another shape
        return int(module.in_features), int(module.out_features)
    transposed: Any = module.weight  # of a Conv1D (GPT-2)
    return int(transposed.shape[0]), int(transposed.shape[1])


def adaptable(model: Any, names: Sequence[str]) -> list[str]:
    """Those of the named linear layers that PEFT adapts under exactly these names."""
    # PEFT rejects `out_proj` of some Mamba models, whose fused kernels bypass it. As transformers
    # fuses experts, it reads `down_proj` in a mixture-of-experts model as all experts of all
    # blocks, even where the name is that of a dense layer or a shared expert.
    suffixes = {name.rsplit(".", 1)[-1] for name in names}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = {one for one in suffixes if one not in _NEVER_CALLED and _is_accepted(base, one)}
    return [name for name in names if name.rsplit(".", 1)[-1] in accepted]


def _is_accepted(model: Any, suffix: str) -> bool:
    """Whether PEFT adapts the layers of this name, and leaves the name as it is."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    config = LoraConfig(target_modules=[suffix])
    try:
        _check_lora_target_modules_mamba(config, model, suffix)
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
