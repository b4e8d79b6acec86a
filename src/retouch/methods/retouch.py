"""Retouch itself, behind the interface of the baselines."""

from __future__ import annotations

from typing import Any

from retouch.concepts.concept import Concept
from retouch.core.config import MethodConfig
from retouch.core.types import Direction, Progress
from retouch.evaluation.strength_choice import choose_strength
from retouch.methods.method import Method
from retouch.models.adapters import scale
from retouch.models.editable_model import EditableModel
from retouch.task.layers import select_layers
from retouch.task.task import EditTask
from retouch.training.setup import build_trainer


class Retouch(Method):
    """The edit of this package, as `retouch edit` makes it; its settings are the same groups."""

    id = "retouch"
    title = "Retouch"
    source = "this package, after Zhang et al. 2024, arXiv 2404.13752"
    settings = MethodConfig

    def defaults(self, concept: Concept, direction: Direction) -> dict[str, Any]:
        """The concept's tuned settings, which `retouch edit` uses too."""
        tuned = concept.settings.get(direction, {})
        return {group: tuned[group] for group in MethodConfig.model_fields if group in tuned}

    def apply(
        self, editable: EditableModel, task: EditTask, settings: MethodConfig, progress: Progress
    ) -> None:
        """Train on the task's examples and choose the strength; the adapter stays on the model."""
        layers = select_layers(
            task.patching,
            editable.layout.depth,
            adapted=settings.lora.layers_to_transform,
            read=settings.discriminator.layers,
            logits=settings.loss.uses_logits,
        )
        trainer = build_trainer(editable, task, layers, settings)
        for event in trainer.train():
            progress("rounds", event.round, event.rounds)
        trainer.finish()
        choice = choose_strength(
            editable,
            task.concept,
            task.direction,
            settings.train.strengths,
            max_new_tokens=task.data.max_new_tokens,
            excess=trainer.measure_excess,
        )
        scale(editable, choice.strength)
