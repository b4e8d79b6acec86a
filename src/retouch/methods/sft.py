"""LoRA supervised fine-tuning on the target responses: alone, with replay, with KL to the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.lora import (
    LoraSettings,
    Loss,
    all_layers,
    base_kl,
    endless_batches,
    response_loss,
    train,
)
from retouch.methods.method import Method
from retouch.models.editable_model import EditableModel
from retouch.representations.batch import PaddedBatch
from retouch.task.task import EditTask


class LoraSft(Method):
    """Fine-tune on the target responses, without a retain set."""

    id = "lora-sft"
    title = "LoRA SFT"
    source = "Hu et al. 2021, arXiv 2106.09685"
    settings = LoraSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters on all layers with the response loss and `retain_loss`."""

        def make_loss() -> Loss:
            chosen, retain = (
                endless_batches(editable, chats, settings.batch_size, f"{task.seed}:{name}")
                for name, chats in (("wanted", task.train.chosen), ("hold", task.train.retain))
            )

            def loss(_: int) -> torch.Tensor:
                total = response_loss(editable, next(chosen))
                retain_loss = self.retain_loss(editable, retain, settings)
                return total if retain_loss is None else total + retain_loss

            return loss

        train(editable, task, settings, all_layers(editable), make_loss, progress)

    def retain_loss(
        self, editable: EditableModel, retain: Iterator[PaddedBatch], settings: Any
    ) -> torch.Tensor | None:
        """The weighted loss on the next retain batch; None without one."""
        return None


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

    def retain_loss(
        self, editable: EditableModel, retain: Iterator[PaddedBatch], settings: Any
    ) -> torch.Tensor | None:
        """Cross-entropy of the base model's responses."""
        batch = next(retain, None)
        return None if batch is None else settings.replay_weight * response_loss(editable, batch)


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

    def retain_loss(
        self, editable: EditableModel, retain: Iterator[PaddedBatch], settings: Any
    ) -> torch.Tensor | None:
        """KL(base || edited) on every token."""
        batch = next(retain, None)
        return None if batch is None else settings.kl_weight * base_kl(editable, batch)
