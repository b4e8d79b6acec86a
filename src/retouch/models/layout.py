"""Find the blocks and the linear layers of any decoder, without a list of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from retouch.core.errors import ModelError
from retouch.models.lora_targets import adaptable, is_linear


@dataclass(frozen=True)
class ModelLayout:
    """Where a decoder keeps its blocks.

    Attributes:
        path: the full name of the block list, such as `model.layers`.
        depth: how many blocks there are.
    """

    path: str
    depth: int

    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks of a model with this layout, PEFT's wrapping or not."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return list(base.get_submodule(self.path))

    def linears(self, model: Any, layers: Sequence[int], ends: Sequence[str] = ()) -> list[str]:
        """Full names of the linear layers in the chosen blocks (0-based) that take an adapter.

        `ends` keeps the names that end so (`q_proj`); none keeps all.

        The weights of a mixture's experts are fused into three-dimensional parameters, which are no
        linear layers: the experts and their router stay as they are, and so does what shares their
        names (see `models.reach.reachable`). Attention is adapted in such models, and what else is
        dense. `unreached` says what is left out.

        Raises:
            ModelError: a block does not exist, or nothing matches.
        """
        beyond = [i for i in layers if not 0 <= i < self.depth]
        if beyond:
            raise ModelError(
                f"There is no block {beyond[0]}: the model has blocks 0 to {self.depth - 1}.",
                "Choose other --layers.",
            )
        blocks = self.blocks(model)
        found = adaptable(
            model,
            [
                f"{self.path}.{i}.{name}"
                for i in layers
                for name, module in blocks[i].named_modules()
                if is_linear(module)
            ],
        )
        chosen = [name for name in found if not ends or name.endswith(tuple(ends))]
        if not chosen:
            leaves = sorted({name.rsplit(".", 1)[1] for name in found})
            raise ModelError(
                f"No linear layer of blocks {list(layers)} ends in {', '.join(ends) or '*'}.",
                f"There are: {', '.join(leaves) or 'none'}. Choose other --modules.",
            )
        return chosen

    def unreached(self, model: Any, layers: Sequence[int]) -> dict[str, int]:
        """The weights of the chosen blocks that no adapter reaches, and how many numbers each has.

        Matrices and larger tensors alone (experts, routers, convolutions), by full name: norms and
        biases are left out. For a base model, without an adapter on it.
        """
        reached = set(self.linears(model, layers))
        blocks = self.blocks(model)
        return {
            f"{self.path}.{i}.{name}": parameter.numel()
            for i in layers
            for name, parameter in blocks[i].named_parameters()
            if parameter.dim() > 1 and f"{self.path}.{i}.{name.rsplit('.', 1)[0]}" not in reached
        }


def find_layout(model: Any) -> ModelLayout:
    """The only `ModuleList` below the decoder that is as long as the configuration says.

    Raises:
        ModelError: there is none, or more than one; names the candidates.
    """
    depth = int(model.config.get_text_config().num_hidden_layers)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    fit = [name for name, module in lists.items() if len(module) == depth]
    if len(fit) != 1:
        seen = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise ModelError(
            f"{type(model).__name__} should have one list of {depth} blocks, but has {len(fit)}.",
            f"Block lists found: {seen}. This architecture is not supported yet.",
        )
    prefix = next((n for n, m in model.named_modules() if m is decoder), "")
    return ModelLayout(".".join(part for part in (prefix, fit[0]) if part), depth)
