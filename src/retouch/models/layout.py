"""Find the blocks of any decoder and the linear layers in them, without a list of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from retouch.core.errors import ModelError
from retouch.models.lora_targets import adaptable, is_linear


@dataclass(frozen=True)
class ModelLayout:
    """The location of a decoder's blocks.

    Attributes:
        path: the full name of the block list, such as `model.layers`.
        depth: the number of blocks.
    """

    path: str
    depth: int

    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks of a model with this layout, wrapped by PEFT or not."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return list(base.get_submodule(self.path))

    def linears(
        self, model: Any, layers: Sequence[int], target_modules: Sequence[str] = ()
    ) -> list[str]:
        """Full names of the linear layers of some blocks that LoRA can adapt.

        Fused experts are three-dimensional parameters and not linear layers: experts and routers
        stay unadapted, and so do layers that share their names (`lora_targets.adaptable`).
        `unadapted` lists the rest.

        Args:
            model: a model with this layout.
            layers: the blocks, 0-based.
            target_modules: suffixes of the names to keep, such as `q_proj` (default: all names).

        Raises:
            ModelError: a block does not exist, or no linear layer matches.
        """
        missing = [i for i in layers if not 0 <= i < self.depth]
        if missing:
            raise ModelError(
                f"Layer {missing[0]} does not exist: the model has layers 0 to {self.depth - 1}.",
                "Set other `layers_to_transform`.",
                code="layer-missing",
            )
        blocks = self.blocks(model)
        names = adaptable(
            model,
            [
                f"{self.path}.{i}.{name}"
                for i in layers
                for name, module in blocks[i].named_modules()
                if is_linear(module)
            ],
        )
        matching = [
            name for name in names if not target_modules or name.endswith(tuple(target_modules))
        ]
        if not matching:
            suffixes = sorted({name.rsplit(".", 1)[1] for name in names})
            raise ModelError(
                f"No adaptable linear layer of the layers {list(layers)} has a name that ends in "
                f"{', '.join(target_modules) or '*'}.",
                f"Set other `target_modules`; available: {', '.join(suffixes) or 'none'}.",
                code="module-missing",
            )
        return matching

    def unadapted(self, model: Any, layers: Sequence[int]) -> dict[str, int]:
        """The weights of some blocks that `linears` cannot adapt, and their numbers of elements.

        Covers matrices and larger tensors (experts, routers, convolutions), by full name, but not
        norms and biases. For a base model without an adapter.
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
    lists = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    matching = [name for name, module in lists.items() if len(module) == depth]
    if len(matching) != 1:
        found = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise ModelError(
            f"{type(model).__name__} must have exactly one list of {depth} blocks, "
            f"found {len(matching)}.",
            f"Lists of modules: {found}. This architecture is not supported.",
            code="architecture-unsupported",
        )
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    return ModelLayout(".".join(part for part in (prefix, matching[0]) if part), depth)
