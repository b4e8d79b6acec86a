"""The training that all LoRA methods share; they differ in the loss alone.

The best checkpoint is kept: the one with the highest validation score within the maximum drift, as
for Retouch; if none is within it, the one with the lowest drift.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import LoraConfig, option
from retouch.core.errors import DivergedError
from retouch.core.types import Progress
from retouch.methods.method import MethodSettings
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.representations.batch import PaddedBatch, make_batches, shuffled_forever
from retouch.representations.divergence import kl_divergence
from retouch.representations.logprobs import response_logprobs
from retouch.task.best_checkpoint import BestCheckpoint
from retouch.task.task import EditTask

MAX_GRAD_NORM = 1.0

Loss = Callable[[int], torch.Tensor]
"""The loss of a training step, by its number from 0."""


class LoraSettings(MethodSettings):
    """The settings of every LoRA method."""

    learning_rate: float = option(1e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    max_steps: int = option(96, "training steps", search=(24, 200), log=True, ge=1)
    r: int = option(8, "LoRA rank", ge=1)
    lora_alpha: float = option(16.0, "LoRA alpha; the update is scaled by lora_alpha / r", gt=0)
    batch_size: int = option(24, "examples per training step", ge=1)
    num_validations: int = option(8, "validations during the training", ge=1)
    max_drift: float = option(
        0.02,
        "maximum drift of a checkpoint: KL to the base in nats a token",
        search=(0.002, 0.1),
        log=True,
    )


def all_layers(editable: EditableModel) -> tuple[int, ...]:
    """All layers: where LoRA fine-tuning usually puts its adapters."""
    return tuple(range(editable.layout.depth))


def attach_adapter(
    editable: EditableModel, layers: Sequence[int], settings: LoraSettings, seed: int
) -> None:
    """Attach a new adapter with the settings' rank and alpha to layers."""
    attach(editable, layers, LoraConfig(r=settings.r, lora_alpha=settings.lora_alpha), seed)


class PeriodicValidation:
    """Validates an adapter at equal intervals of its training and keeps the best weights."""

    def __init__(
        self, editable: EditableModel, task: EditTask, settings: LoraSettings, progress: Progress
    ) -> None:
        """Set the interval; the adapter is attached already."""
        self._weights = parameters(editable)
        self._validator, self._progress = task.validator, progress
        self._last_step = settings.max_steps
        self._interval = max(1, settings.max_steps // settings.num_validations)
        self._best = BestCheckpoint(settings.max_drift, allow_above=True)

    def after_step(self, step: int) -> None:
        """Validate after a step, numbered from 1, if it is due; the last step always is."""
        if step % self._interval == 0 or step == self._last_step:
            self._best.update(self._validator(), self._weights)
            self._progress("training", step, self._last_step)

    def restore_best(self) -> None:
        """Give the adapter the best weights."""
        self._best.restore(self._weights)


def train(
    editable: EditableModel,
    task: EditTask,
    settings: LoraSettings,
    layers: Sequence[int],
    make_loss: Callable[[], Loss],
    progress: Progress,
) -> None:
    """Attach a LoRA adapter to layers and train it; the best checkpoint stays on the model.

    Args:
        editable: the base model.
        task: provides the validator and the seed.
        settings: the method's settings.
        layers: the layers to adapt.
        make_loss: returns the loss; called once the adapter is attached.
        progress: called after every validation.

    Raises:
        DivergedError: a loss is not finite.
    """
    attach_adapter(editable, layers, settings, task.seed)
    weights = list(parameters(editable).values())
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate)
    loss_of = make_loss()
    validation = PeriodicValidation(editable, task, settings, progress)
    for step in range(settings.max_steps):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss is not finite in step {step + 1}.",
                "Lower `learning_rate`.",
                code="loss-not-finite",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        validation.after_step(step + 1)
    validation.restore_best()


def endless_batches(
    editable: EditableModel, chats: Sequence[TokenizedChat], batch_size: int, seed: str
) -> Iterator[PaddedBatch]:
    """Batches of chats without end, in a new order in every epoch; none if there are no chats."""
    batches = make_batches(chats, batch_size, int(editable.tokenizer.pad_token_id))
    return shuffled_forever(batches, random.Random(seed))


def response_loss(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    r"""Cross-entropy of the responses: $-\frac1T \sum_t \log p(y_t | x, y_{<t})$, nats a token."""
    logits = editable.model(input_ids=batch.ids.to(editable.device), use_cache=False).logits
    return -response_logprobs(logits, batch).mean()


def base_kl(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    r"""$\frac1T \sum_t KL(p_{base} || p)$ over every token of the batch, nats a token."""
    ids, mask = batch.ids.to(editable.device), batch.token_mask()
    with torch.no_grad(), editable.base_model():
        base = editable.model(input_ids=ids, use_cache=False).logits
    edited = editable.model(input_ids=ids, use_cache=False).logits
    mask = mask.to(edited.device)
    return kl_divergence(base[mask], edited[mask]).mean()
