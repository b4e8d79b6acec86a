"""Fine-tune a LoRA update of every linear layer, in addition to a model's own adapter.

The adversary in training (TAR) and the fine-tuning attack in evaluation both use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from retouch.core.config import LearningRateSchedule
from retouch.core.errors import DivergedError
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import removing
from retouch.models.layout import linear_shape
from retouch.representations.batch import ChatBatch
from retouch.representations.logprobs import response_logprobs

LoraDelta = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A `[r, in]` and B `[out, r]` by the full name of a linear layer."""

SCALE = 2.0  # lora_alpha / r


def linear_shapes(editable: EditableModel) -> dict[str, tuple[int, int]]:
    """The input and output sizes of the adaptable linear layers of all blocks, by full name."""
    base = _base(editable)
    names = editable.layout.linears(base, range(editable.layout.depth))
    names = [name for name in names if ".lora_" not in name]  # not those of an attached adapter
    return {name: linear_shape(base.get_submodule(name)) for name in names}


def init_lora_delta(
    shapes: Mapping[str, tuple[int, int]], r: int, seed: int, device: torch.device
) -> LoraDelta:
    """A new update that changes nothing yet: A is random and B is zero, as PEFT initialises."""
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for name, (inputs, outputs) in shapes.items():
        bound = 1 / math.sqrt(inputs)
        a = torch.empty(r, inputs).uniform_(-bound, bound, generator=generator)
        delta[name] = (a.to(device), torch.zeros(outputs, r, device=device))
    return delta


@contextmanager
def apply_lora_delta(editable: EditableModel, delta: LoraDelta) -> Iterator[None]:
    r"""Add the update to the outputs of the linear layers: $y + s\,B A x$."""
    base = _base(editable)

    def adding(a: torch.Tensor, b: torch.Tensor) -> Any:
        def hook(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            update: torch.Tensor = SCALE * (args[0].to(a.dtype) @ a.T) @ b.T
            return output + update.to(output.dtype)

        return hook

    layers = {name: base.get_submodule(name) for name in delta}
    with removing([layers[n].register_forward_hook(adding(*ab)) for n, ab in delta.items()]):
        yield


def finetune(
    editable: EditableModel,
    delta: LoraDelta,
    batches: Sequence[ChatBatch],
    steps: int,
    learning_rate: float,
    schedule: LearningRateSchedule = "constant",
) -> Iterator[float]:
    r"""Train an update in place on the responses of batches, one step at each iteration.

    $$\phi_{k+1} = \phi_k - \eta \, \mathrm{Adam}(\nabla_\phi CE(y | x; \theta, \phi_k))$$

    The weights $\theta$ of the model and its adapter get no gradient.

    Args:
        editable: the model, with its adapter and interventions.
        delta: the update $\phi$.
        batches: the batches to train on, in turn.
        steps: the number of steps.
        learning_rate: $\eta$; with a cosine schedule its peak, which falls to 0.
        schedule: of the learning rate over all steps.

    Yields:
        The loss of each step, nats a token.

    Raises:
        DivergedError: the loss is not finite.
    """
    leaves = [one.requires_grad_() for pair in delta.values() for one in pair]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    for step in range(steps):
        batch = batches[step % len(batches)]
        with apply_lora_delta(editable, delta):
            ids = batch.ids.to(editable.device)
            logits = editable.model(input_ids=ids, use_cache=False).logits
            loss = -response_logprobs(logits, batch).mean()
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss of the fine-tuning adversary is not finite in step {step + 1}.",
                "Lower its learning rate.",
            )
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        if schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = learning_rate * share
        optimizer.step()
        yield float(loss.detach())


def snapshot(delta: LoraDelta) -> LoraDelta:
    """A copy of an update, without gradients."""
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in delta.items()}


def _base(editable: EditableModel) -> Any:
    return editable.model.get_base_model() if editable.adapted else editable.model
