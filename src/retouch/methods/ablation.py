"""Scale a direction in the weights that write to the residual stream, as a LoRA of rank one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retouch.core.config import LoraConfig, option
from retouch.core.types import Progress
from retouch.methods.directions import (
    contrast_states,
    layer_at_offset,
    mean_difference,
    normalize,
)
from retouch.methods.method import Method, MethodSettings
from retouch.models import interventions
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import removing
from retouch.task.task import EditTask


class AblationSettings(MethodSettings):
    """How the direction is scaled, what is added along it, and where it is read."""

    scale: float = option(
        -1.0, "factor of the output along the direction that is added; -1 ablates", search=(-1, 3)
    )
    added: float = option(
        0.25,
        "multiple of the mean difference that is added at the layer; 0 adds none",
        search=(0.05, 3),
        log=True,
    )
    offset: int = option(0, "layer, relative to the first that Retouch reads", search=(-1, 2))
    positions: int = option(
        1, "response positions that are read, from the last prompt token on", choices=(1, 2, 4)
    )


class Ablation(Method):
    r"""Remove a direction from what every layer writes, or amplify it.

    With the unit difference of means $r$ at one layer (Arditi et al. 2024, sections 2.3 and 2.4),

    $$W' = W + c \, r r^\top W, \qquad h_l \leftarrow h_l + a \, |\bar h^+ - \bar h^-| \, r$$

    for each linear layer that writes to the residual stream, in all blocks. $c = -1$ is their
    weight orthogonalisation; larger values amplify. The second part is their activation addition,
    which would be a bias in the weights; both together replace what is written along $r$ by a
    constant. The embedding and the biases of those linear layers are unchanged, and where a norm
    follows such a layer before the residual stream (Gemma 2), it rescales the result.
    """

    id = "ablation"
    title = "Directional ablation"
    source = "Arditi et al. 2024, arXiv 2406.11717"
    settings = AblationSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Compute the direction from the training examples; add the adapter and the vector."""
        layer = layer_at_offset(task, editable.layout.depth, settings.offset)
        states = contrast_states(editable, task, [layer], settings.positions)[layer]
        difference = mean_difference(states)
        scale_direction(editable, normalize(difference), settings.scale, task.seed)
        if settings.added:
            vector = settings.added * difference.to(editable.device)
            editable.intervene(interventions.Steering({layer: vector}))


@torch.no_grad()
def scale_direction(
    editable: EditableModel, direction: torch.Tensor, scale: float, seed: int = 0
) -> None:
    r"""Apply $W' = W + c \, r r^\top W$ to every writing layer.

    It is a LoRA with $B = c \, r$ and $A = r^\top W$, so it can be merged, exported and
    switched off like any adapter.

    Args:
        editable: the model, without an adapter.
        direction: the unit vector $r$, `[hidden]`.
        scale: $c$.
        seed: of the adapter's initial weights, all of which are replaced.
    """
    names = residual_writers(editable)
    config = LoraConfig(r=1, lora_alpha=1.0, target_modules=tuple(names))
    attach(editable, range(editable.layout.depth), config, seed)
    base = editable.model.get_base_model()
    for name in names:
        layer = base.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        r = direction.to(a.device, torch.float32)
        weight = layer.base_layer.weight.float()
        # A Conv1D (GPT-2) has its weight transposed, [in, out].
        projected = r @ weight if isinstance(layer.base_layer, nn.Linear) else weight @ r
        a.copy_(projected[None, :])
        b.copy_(scale * r[:, None])


@torch.no_grad()
def residual_writers(editable: EditableModel) -> list[str]:
    """Full names of the linear layers whose output is added to the residual stream.

    Their output has the hidden size, but a query projection's may have it too. Of the layers with
    one parent module (attention, the feed-forward part or the block itself), the writer is the one
    that runs last. Not found are experts that share one weight, and experts that the router does
    not choose for the token that is run.
    """
    base = editable.base
    hidden = int(base.config.get_text_config().hidden_size)
    last: dict[str, str] = {}

    def recorder(name: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            if output.shape[-1] == hidden:
                last[name.rsplit(".", 1)[0]] = name

        return hook

    names = editable.layout.linears(base, range(editable.layout.depth))
    with removing([base.get_submodule(n).register_forward_hook(recorder(n)) for n in names]):
        base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=editable.device), use_cache=False)
    return list(last.values())
