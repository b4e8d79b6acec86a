"""Build a trainer: check the segment, cache the activations, attach a new adapter."""

from __future__ import annotations

import torch

from retouch.core.config import MethodConfig
from retouch.core.errors import DataError, ModelError
from retouch.core.types import Progress, no_progress
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.task.layers import LayerSelection
from retouch.task.task import EditTask
from retouch.training.context import TrainingContext
from retouch.training.contrast_init import initialize_from_contrast
from retouch.training.dataset import EditDataset
from retouch.training.finetuning_adversary import FinetuningAdversary
from retouch.training.trainer import Trainer

CHECKED_TOKENS = 32  # tokens on which the segment is compared with the whole model


def build_trainer(
    editable: EditableModel,
    task: EditTask,
    layers: LayerSelection,
    method: MethodConfig,
    progress: Progress = no_progress,
) -> Trainer:
    """Cache the frozen activations, attach a new adapter and build the trainer.

    Args:
        editable: the base model, with nothing acting on it.
        task: the examples and the validator.
        layers: the layers to adapt and to read.
        method: the settings.
        progress: called while the activations are cached.

    Raises:
        DataError: a fine-tuning adversary, distillation or negative preference optimisation is
            configured, and there are no pairs.
        ModelError: the model is edited already, a layer has no matching linear layer, or the
            layers cannot run on their own.
    """
    if editable.edited:
        raise ModelError(
            f"{editable.name} is edited already.",
            "Edit the base model, or export the edited model as `merged` and edit that.",
            code="model-edited",
        )
    if method.loss.distillation_weight and not task.train.counterparts:
        raise DataError(
            "`distillation_weight` needs target counterparts, and the examples are no pairs.",
            "Give the concept's examples a `pair` or its direction a `context`, or set "
            "`distillation_weight` to 0.",
            code="pairs-missing",
        )
    if method.loss.npo_weight and not task.train.rejected:
        raise DataError(
            "`npo_weight` needs source responses to unlearn, and the examples are no pairs.",
            "Give the concept's examples a `pair`, or set `npo_weight` to 0.",
            code="pairs-missing",
        )
    every = (*layers.adapted, *layers.read)
    last = editable.layout.depth - 1 if method.loss.uses_logits else max(every)
    segment = Segment(editable, min(every), last)
    editable.keep_on_device(range(segment.first, segment.last + 1))
    segment.check(torch.tensor([task.train.source[0].ids[:CHECKED_TOKENS]]))
    context = TrainingContext(editable, segment, layers.read, method, task.seed, task.packer)
    dataset = EditDataset(context, task.train, progress)
    adversary = None
    if method.adversary.finetune_steps:
        adversary = FinetuningAdversary(editable, task.train, method.adversary, task.seed)
    attach(editable, layers.adapted, method.lora, task.seed)
    if method.lora.init_lora_weights == "contrast":
        initialize_from_contrast(context, layers.adapted, dataset, progress)
    return Trainer(context, dataset, task.validator, adversary)
