"""Retouch itself, behind the protocol of the methods that it is compared with."""

from __future__ import annotations

from typing import Any

from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.types import Direction
from retouch.methods.method import Method, Progress, Settings, tunable
from retouch.models.editable_model import EditableModel
from retouch.task.layers import select_layers
from retouch.task.task import EditTask
from retouch.training.setup import build_trainer


def _default(name: str) -> Any:
    return EditConfig.model_fields[name].default


class RetouchSettings(Settings):
    """The game's own settings, those of `EditConfig`; the rows are the task's."""

    layers: tuple[int, ...] | None = None
    read_layers: tuple[int, ...] | None = None
    rank: int = _default("rank")
    alpha: float = _default("alpha")
    rounds: int = _default("rounds")
    steps: int = _default("steps")
    batch: int = _default("batch")
    lr: float = tunable(
        _default("lr"), low=1e-3, high=1e-2, log=True, description="learning rate (Adam)"
    )
    average: float = _default("average")
    adversarial_weight: float = tunable(
        _default("adversarial_weight"), low=0.1, high=3.0, log=True, description="of the game"
    )
    pair_weight: float = tunable(
        _default("pair_weight"),
        low=0.3,
        high=20.0,
        log=True,
        description="of matching the counterpart",
    )
    supervised_weight: float = _default("supervised_weight")
    first_weight: float = _default("first_weight")
    perturb: float = _default("perturb")
    perturb_steps: int = _default("perturb_steps")
    tamper: int = _default("tamper")
    tamper_lr: float = _default("tamper_lr")
    tamper_weight: float = _default("tamper_weight")
    match_prompt: bool = _default("match_prompt")
    retain_weight: float = tunable(
        _default("retain_weight"), low=5.0, high=100.0, log=True, description="of the retain set"
    )
    retain_response_weight: float = _default("retain_response_weight")
    response_positions: int = _default("response_positions")
    discriminator_width: int = _default("discriminator_width")
    discriminator_lr: float = _default("discriminator_lr")
    discriminator_first: int = _default("discriminator_first")
    discriminator_steps: int = _default("discriminator_steps")
    discriminator_fresh: bool = _default("discriminator_fresh")
    smoothing: float = _default("smoothing")
    drift_guard: float = _default("drift_guard")
    patience: int = _default("patience")


class Retouch(Method):
    """The edit of this package, as `retouch edit` makes it."""

    id = "retouch"
    title = "Retouch"
    source = "this package, after Zhang et al. 2024, arXiv 2404.13752"
    settings = RetouchSettings

    def defaults(self, concept: Concept, direction: Direction) -> dict[str, Any]:
        """The concept's tuned settings, as `retouch edit` takes them."""
        tuned = concept.settings.get(direction, {})
        return {key: value for key, value in tuned.items() if key in RetouchSettings.model_fields}

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Play the game on the task's rows; the best averaged weights stay on the model."""
        config = EditConfig(**{**dict(task.config), **dict(settings)})
        layers = select_layers(config, task.patching, editable.layout.depth)
        trainer = build_trainer(editable, task.train, layers, task.validator, config)
        for event in trainer.train():
            progress("rounds", event.round, event.rounds)
        trainer.finish()
