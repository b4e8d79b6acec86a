"""A small concept and a training of the tiny model on it, in well under a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retouch.concepts.concept import Concept, DirectionSpec, Example
from retouch.core.config import EditConfig
from retouch.core.config_file import resolve
from retouch.core.options import nest
from retouch.core.types import Message
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask, build_task
from retouch.training.setup import build_trainer
from retouch.training.trainer import Trainer

# Without the losses on responses, and at full strength.
STATES_ALONE: dict[str, Any] = {
    "data.prefill_tokens": 0,
    "train.max_retain_change": 1.0,
    "train.strengths": (1.0,),
    "loss.adversarial_weight": 1.0,
    "loss.matching_weight": 1.0,
    "loss.sft_weight": 0.0,
    "loss.kl_weight": 0.0,
}
SMALL: dict[str, Any] = {
    **STATES_ALONE,
    "concept": "tiny",
    "data.num_examples": 8,
    "data.num_retain": 8,
    "data.prefills_per_example": 1.0,
    "data.wrapped_share": 1.0,
    "train.batch_size": 4,
    "train.retain_batch_size": 4,
    "train.learning_rate": 5e-3,
    "train.loraplus_lr_ratio": 1.0,
    "train.lr_scheduler_type": "constant",
    "train.warmup_ratio": 0.0,
    "loss.retain_weight": 30.0,
    "loss.first_token_weight": 1.0,
    "train.rounds": 4,
    "train.steps_per_round": 4,
    "train.max_drift": 100.0,
    "train.patience": 99,
    "lora.layers_to_transform": (1, 2),
    "discriminator.layers": (2,),
    "discriminator.hidden_size": 16,
    "discriminator.warmup_steps": 20,
    "discriminator.steps_per_round": 5,
}


def tiny_config(overrides: Mapping[str, Any] | None = None) -> EditConfig:
    """A small configuration; `overrides` by dotted path, such as `{"train.rounds": 2}`."""
    return resolve(nest({**SMALL, **(overrides or {})}))


def tiny_concept(pairs: bool = True) -> Concept:
    """Prompts that end in w80 (source) and the same prompts without it (target)."""

    def examples(begin: int) -> tuple[Example, ...]:
        made = []
        for i in range(begin, begin + 12):
            pair = f"p{i}" if pairs else None
            target, source = f"w{i} w{i + 1}", f"w{i} w{i + 1} w80"
            made.append(Example((Message("user", source),), "negative", "w5 w6", pair))
            made.append(Example((Message("user", target),), "positive", "w7 w8", pair))
            made.append(Example((Message("user", f"w60 w{i}"),), "retain", "w9"))
        return tuple(made)

    return Concept(
        "tiny",
        "Tiny",
        "",
        {"train": examples(0), "validation": examples(20), "test": examples(40)},
        {
            "raise": DirectionSpec(("negative",), ("positive",), ("retain",)),
            "lower": DirectionSpec(("positive",), ("negative",), ("retain",)),
        },
    )


@dataclass(frozen=True)
class Training:
    """A task and the trainer that was built for it."""

    task: EditTask
    trainer: Trainer


def build_training(
    editable: EditableModel, config: EditConfig, concept: Concept | None = None
) -> Training:
    """The task and the trainer, not yet run; the adapter is attached."""
    task = build_task(
        editable,
        concept or tiny_concept(),
        config.direction,
        config.seed,
        config.data,
        config.method,
    )
    return Training(task, build_trainer(editable, task, task.layers, config.method))


def run_training(
    editable: EditableModel, config: EditConfig, concept: Concept | None = None
) -> Training:
    """Build and run a training to its end; the best weights are on the model."""
    training = build_training(editable, config, concept)
    for _ in training.trainer.train():
        pass
    training.trainer.finish()
    return training
