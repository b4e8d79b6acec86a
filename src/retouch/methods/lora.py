"""The training that all LoRA methods share, and supervised fine-tuning (SFT).

The best checkpoint is kept: the one with the highest validation score within the maximum drift, as
for Retouch; if none is within it, the one with the lowest drift.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from retouch.core.config import LoraConfig, option
from retouch.core.errors import ConfigError, DivergedError
from retouch.core.types import Progress
from retouch.methods.cached_batches import CachedBatches
from retouch.methods.method import Method, MethodSettings
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import shuffled_forever
from retouch.representations.cached_states import CachedStates
from retouch.representations.divergence import kl_divergence
from retouch.representations.losses import sft_loss
from retouch.task.best_checkpoint import BestCheckpoint
from retouch.task.task import EditTask

MAX_GRAD_NORM = 1.0


class LoraSettings(MethodSettings):
    """The settings of every LoRA method."""

    learning_rate: float = option(1e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    max_steps: int = option(96, "training steps", search=(24, 200), log=True, ge=1)
    r: int = option(8, "LoRA rank", ge=1)
    lora_alpha: float = option(16.0, "LoRA alpha; the update is scaled by lora_alpha / r", gt=0)
    batch_size: int = option(8, "source examples per training step", ge=1)
    retain_batch_size: int = option(16, "retain examples per training step", ge=1)
    num_validations: int = option(8, "validations during the training", ge=1)
    max_drift: float = option(
        0.02, "maximum drift (KL to the base, nats a token)", search=(0.002, 0.1), log=True
    )


def check_pairs(task: EditTask, method: str) -> None:
    """Raise `ConfigError` if the training examples have no source responses to unlearn."""
    if not task.train.rejected:
        raise ConfigError(
            f"{method} needs source responses, and the examples of {task.concept.name} have none, "
            "since they are no pairs.",
            "Give the concept's examples a `pair`, or choose another method.",
            code="pairs-missing",
        )


def check_finite(value: torch.Tensor, name: str) -> None:
    """Raise `DivergedError` if a loss or a weight is not finite."""
    if not torch.isfinite(value).all():
        raise DivergedError(
            f"{name} is not finite.", "Lower `learning_rate`.", code="loss-not-finite"
        )


def attach_adapter(
    editable: EditableModel, layers: Sequence[int], settings: LoraSettings, seed: int
) -> None:
    """Attach a new adapter with the settings' rank and alpha to layers."""
    attach(editable, layers, LoraConfig(r=settings.r, lora_alpha=settings.lora_alpha), seed)


class PeriodicValidation:
    """Validates an attached adapter at equal intervals of its training; keeps the best weights."""

    def __init__(
        self, editable: EditableModel, task: EditTask, settings: LoraSettings, progress: Progress
    ) -> None:
        self._weights = parameters(editable)
        self._validator, self._progress = task.validator, progress
        self._last_step = settings.max_steps
        self._interval = max(1, settings.max_steps // settings.num_validations)
        self._best = BestCheckpoint(settings.max_drift)

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
    loss_of: Callable[[int], torch.Tensor],
    progress: Progress,
) -> None:
    """Train the attached adapter; the best checkpoint stays on the model.

    `loss_of` computes the loss of a training step, by its number from 0; `progress` is called after
    every validation.

    Raises:
        DivergedError: a loss is not finite.
    """
    weights = list(parameters(editable).values())
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate)
    validation = PeriodicValidation(editable, task, settings, progress)
    for step in range(settings.max_steps):
        loss = loss_of(step)
        check_finite(loss, f"The loss of step {step + 1}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        validation.after_step(step + 1)
    validation.restore_best()


def response_loss(segment: Segment, cached: CachedStates) -> torch.Tensor:
    r"""Cross-entropy of the responses: $-\frac1T \sum_t \log p(y_t | x, y_{<t})$, nats a token."""
    states = cached.current(segment, (segment.last,))[segment.last]
    return sft_loss(segment.logits(states), cached.batch.response_tokens())


def base_kl(segment: Segment, cached: CachedStates) -> torch.Tensor:
    r"""$\frac1T \sum_t KL(p_{base} || p)$ over the response tokens of the batch, nats a token."""
    with torch.no_grad():
        base = segment.logits(cached.states[segment.last])
    states = cached.current(segment, (segment.last,))[segment.last]
    return kl_divergence(base, segment.logits(states)).mean()


class LoraSft(Method):
    """Fine-tune on the target responses, without a retain set."""

    id = "lora-sft"
    title = "LoRA SFT"
    source = "Hu et al. 2021, arXiv 2106.09685"
    settings = LoraSettings
    # By the setting with the weight of each.
    retain_losses: ClassVar[dict[str, Callable[[Segment, CachedStates], torch.Tensor]]] = {}

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters on all layers with the response loss and the weighted `retain_losses`."""
        last = editable.layout.depth - 1
        segment = Segment(editable, 0, last)
        batches = CachedBatches(editable, task, segment)
        chosen = batches.cache(task.train.chosen, settings.batch_size)
        retain = []
        if self.retain_losses:
            retain = batches.cache(task.train.retain, settings.retain_batch_size, (last,))
        targets = shuffled_forever(chosen, random.Random(f"{task.seed}:wanted"))
        retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

        def loss(_: int) -> torch.Tensor:
            total = response_loss(segment, next(targets))
            if (batch := next(retains, None)) is not None:
                for weight, retain_loss in self.retain_losses.items():
                    total = total + getattr(settings, weight) * retain_loss(segment, batch)
            return total

        attach_adapter(editable, range(editable.layout.depth), settings, task.seed)
        train(editable, task, settings, loss, progress)


class ReplaySettings(LoraSettings):
    """LoRA settings with the weight of replay."""

    replay_weight: float = option(
        1.0, "weight of the retain responses' loss", search=(0.1, 10), log=True, ge=0
    )


class LoraSftReplay(LoraSft):
    """Fine-tune on the target responses and on the base model's responses to the retain set."""

    id = "lora-sft-replay"
    title = "LoRA SFT + replay"
    source = "Rolnick et al. 2019, arXiv 1811.11682"
    settings = ReplaySettings
    retain_losses: ClassVar = {"replay_weight": response_loss}


class KlSettings(LoraSettings):
    """LoRA settings with the weight of the KL divergence."""

    kl_weight: float = option(
        3.0, "weight of the KL divergence from the base", search=(0.3, 100), log=True, ge=0
    )


class LoraSftKl(LoraSft):
    """Fine-tune on the target responses with a KL penalty on the retain set."""

    id = "lora-sft-kl"
    title = "LoRA SFT + KL"
    source = "the KL term of Ziegler et al. 2019, arXiv 1909.08593, over the retain set"
    settings = KlSettings
    retain_losses: ClassVar = {"kl_weight": base_kl}
