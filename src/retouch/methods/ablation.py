"""A direction scaled in the weights that write to the residual stream, as a LoRA of rank one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retouch.methods.directions import block_at, contrast, mean_difference, unit
from retouch.methods.method import Method, Progress, Settings, tunable
from retouch.models import interventions
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


class AblationSettings(Settings):
    """How the direction is scaled, what is added along it, and where it is read."""

    scale: float = tunable(
        -1.0,
        low=-1.0,
        high=3.0,
        description="of what is written along the direction; -1 ablates it",
    )
    added: float = tunable(
        0.25,
        low=0.05,
        high=3.0,
        log=True,
        description="of the mean difference, added at the block read; 0 adds none",
    )
    offset: int = tunable(
        0, low=-1, high=2, description="block, counted from the first that Retouch reads"
    )
    positions: int = tunable(
        1, choices=(1, 2, 4), description="response positions read; 1 is the decision alone"
    )


class Ablation(Method):
    r"""Take the direction out of what every block writes, or write more of it.

    With the unit difference of means $r$ at one block (Arditi et al. 2024, sections 2.3 and 2.4),

    $$W' = W + c \, r r^\top W, \qquad h_l \leftarrow h_l + a \, |\bar h^+ - \bar h^-| \, r$$

    for each linear layer that writes to the residual stream, in all blocks. $c = -1$ is their
    weight orthogonalisation, larger ones amplify. The second is their activation addition, which
    in the weights would be a bias; both at once replace what is written along $r$ by a constant.
    The embedding and the biases of those layers stay as they are, and where a norm follows such a
    layer before the stream (Gemma 2), it rescales what is left.
    """

    id = "ablation"
    title = "Directional ablation"
    source = "Arditi et al. 2024, arXiv 2406.11717"
    settings = AblationSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Read the direction off the training rows; put the adapter and the addition on."""
        layer = block_at(task, editable.layout.depth, settings.offset)
        both = contrast(editable, task, [layer], settings.positions)[layer]
        difference = mean_difference(both)
        scale_direction(editable, unit(difference), settings.scale, task.config.seed)
        if settings.added:
            vector = settings.added * difference.to(editable.device)
            editable.intervene(interventions.Steering({layer: vector}))


@torch.no_grad()
def scale_direction(
    editable: EditableModel, direction: torch.Tensor, scale: float, seed: int = 0
) -> None:
    r"""Put $W' = W + c \, r r^\top W$ on every writer, as a LoRA: $B = c \, r$, $A = r^\top W$.

    So it can be merged, exported and switched off like any adapter.

    Args:
        editable: the model, without an adapter.
        direction: the unit vector $r$, `[hidden]`.
        scale: $c$.
        seed: of the adapter's first weights, all of which are patch_activations.
    """
    names = writers(editable)
    attach(editable, range(editable.layout.depth), names, rank=1, alpha=1.0, seed=seed)
    base = editable.model.get_base_model()
    for name in names:
        layer = base.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        r = direction.to(a.device, torch.float32)
        weight = layer.base_layer.weight.float()
        # A Conv1D (GPT-2) keeps its weight the other way round, [in, out].
        read = r @ weight if isinstance(layer.base_layer, nn.Linear) else weight @ r
        a.copy_(read[None, :])
        b.copy_(scale * r[:, None])


@torch.no_grad()
def writers(editable: EditableModel) -> list[str]:
    """Full names of the linear layers whose output goes into the residual stream, in all blocks.

    They put out the hidden size; but so may a query projection. Of the layers with one parent
    (attention, the feed-forward part, or the block itself) the writer is the one that runs last.
    Experts are not found where one weight holds all of them, or where none of one token's went.
    """
    base = editable.model.get_base_model() if editable.adapted else editable.model
    hidden = int(base.config.get_text_config().hidden_size)
    last: dict[str, str] = {}
    handles = []

    def notes(name: str) -> Any:
        def note(_: Any, __: Any, out: torch.Tensor) -> None:
            if out.shape[-1] == hidden:
                last[name.rsplit(".", 1)[0]] = name

        return note

    try:
        for name in editable.layout.linears(base, range(editable.layout.depth)):
            handles.append(base.get_submodule(name).register_forward_hook(notes(name)))
        base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=editable.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return list(last.values())
