"""A method in another package: add the difference of mean states at the first read layer.

[project.entry-points."retouch.methods"]
mean-difference = "my_package.mean_difference_method:MeanDifference"
"""

import torch

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.method import Method, MethodSettings
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Steering
from retouch.representations.activations import response_states
from retouch.task.task import EditTask


class Settings(MethodSettings):
    """The strength, which `retouch tune` searches."""

    strength: float = option(1.0, "scale of the added vector", search=(0.25, 4.0), log=True)


class MeanDifference(Method):
    """Steer every position by mean(target) - mean(source) at the last prompt token."""

    id, title, source = "mean-difference", "Mean difference", "arXiv 2312.06681"
    settings = Settings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Settings, progress: Progress
    ) -> None:
        """Read both means from the training examples and add their difference."""
        layer, means = task.layers.read[0], []
        for chats in (task.train.target, task.train.source):
            batches = response_states(editable, chats, [layer], positions=1)
            means.append(torch.cat([states[layer] for _, _, states in batches]).mean(0))
        editable.intervene(Steering({layer: settings.strength * (means[0] - means[1])}))
