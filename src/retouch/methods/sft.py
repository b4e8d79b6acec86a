"""LoRA supervised fine-tuning on the wanted responses: alone, with replay, with KL to the base."""

from __future__ import annotations

from typing import Any

import torch

from retouch.methods.lora import LoraSettings, base_kl, cycle, every_layer, response_loss, train
from retouch.methods.method import Method, Progress, tunable
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


class LoraSft(Method):
    """Learn the wanted responses, and nothing is held."""

    id = "lora-sft"
    title = "LoRA SFT"
    source = "Hu et al. 2021, arXiv 2106.09685"
    settings = LoraSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train on the wanted responses, and on what `held` adds."""

        def make_loss() -> Any:
            wanted = cycle(
                editable, task.train.chosen, settings.batch, f"{task.config.seed}:wanted"
            )
            hold = cycle(editable, task.train.retain, settings.batch, f"{task.config.seed}:hold")

            def loss(_: int) -> torch.Tensor:
                told = response_loss(editable, next(wanted))
                held = self.held(editable, hold, settings)
                return told if held is None else told + held

            return loss

        train(editable, task, settings, every_layer(editable), make_loss, progress)

    def held(self, editable: EditableModel, hold: Any, settings: Any) -> torch.Tensor | None:
        """The part of the loss that holds the retain set."""
        return None


class ReplaySettings(LoraSettings):
    """With the weight of replay."""

    replay_weight: float = tunable(1.0, low=0.1, high=10.0, log=True, description="of replay")


class LoraSftReplay(LoraSft):
    """Learn the wanted responses, and the base model's own responses to the retain set."""

    id = "lora-sft-replay"
    title = "LoRA SFT + replay"
    source = "Rolnick et al. 2019, arXiv 1811.11682"
    settings = ReplaySettings

    def held(self, editable: EditableModel, hold: Any, settings: Any) -> torch.Tensor | None:
        """Cross-entropy of the base's responses."""
        batch = next(hold, None)
        return None if batch is None else settings.replay_weight * response_loss(editable, batch)


class KlSettings(LoraSettings):
    """With the weight of the divergence."""

    kl_weight: float = tunable(3.0, low=0.3, high=100.0, log=True, description="of KL to the base")


class LoraSftKl(LoraSft):
    """Learn the wanted responses, and stay the base model on the retain set: the one to beat."""

    id = "lora-sft-kl"
    title = "LoRA SFT + KL"
    source = "the KL term of Ziegler et al. 2019, arXiv 1909.08593, over the retain set"
    settings = KlSettings

    def held(self, editable: EditableModel, hold: Any, settings: Any) -> torch.Tensor | None:
        """KL(base || model) on the retain set."""
        batch = next(hold, None)
        return None if batch is None else settings.kl_weight * base_kl(editable, batch)
