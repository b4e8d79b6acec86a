"""Vectors added to the hidden states while the model runs: difference of means, reading vectors."""

from __future__ import annotations

from typing import Any

from retouch.methods.directions import block_at, contrast, mean_difference, reading_direction
from retouch.methods.method import Method, Progress, Settings, tunable
from retouch.models import interventions
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


class SteeringSettings(Settings):
    """Where, how strong, and read at which positions."""

    strength: float = tunable(
        0.75, low=0.25, high=4.0, log=True, description="of the vector; 1 is the whole difference"
    )
    offset: int = tunable(
        0, low=-1, high=2, description="block, counted from the first that Retouch reads"
    )
    positions: int = tunable(
        1, choices=(1, 2, 4), description="response positions read; 1 is the decision alone"
    )


class Steering(Method):
    """Add the difference of means to one block's output, at every position.

    Rimsky et al. leave the prompt alone and steer from its end on. Here the prompt is steered too,
    as the libraries do: an edit, too, acts on whatever the model reads.
    """

    id = "steering"
    title = "Steering (CAA)"
    source = "Rimsky et al. 2023, arXiv 2312.06681"
    settings = SteeringSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Read the vector off the training rows and add it."""
        layer = block_at(task, editable.layout.depth, settings.offset)
        both = contrast(editable, task, [layer], settings.positions)[layer]
        vector = settings.strength * mean_difference(both)
        editable.intervene(interventions.Steering({layer: vector.to(editable.device)}))


class ReadingSettings(SteeringSettings):
    """With the number of blocks; what each adds up, so that less is needed of it."""

    strength: float = tunable(
        0.25, low=0.1, high=4.0, log=True, description="of each vector; 1 is the whole difference"
    )
    span: int = tunable(4, low=1, high=4, description="blocks, from the first on, that get one")


class ReadingVector(Method):
    r"""Add to each block of a span its own reading vector.

    $h_l \leftarrow h_l + s \, |\bar h^+_l - \bar h^-_l| \, v_l$, with the unit vector $v_l$ of the
    block and the strength $s$, so that 1 is as long as the difference of means there.
    """

    id = "reading-vector"
    title = "Reading vector (RepE)"
    source = "Zou et al. 2023, arXiv 2310.01405"
    settings = ReadingSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Read a vector for every block of the span off the training rows and add it."""
        depth = editable.layout.depth
        first = block_at(task, depth, settings.offset)
        layers = range(first, min(first + settings.span, depth))
        vectors = {
            layer: settings.strength
            * mean_difference(both).norm()
            * reading_direction(both, task.config.seed)
            for layer, both in contrast(editable, task, layers, settings.positions).items()
        }
        moved = {layer: vector.to(editable.device) for layer, vector in vectors.items()}
        editable.intervene(interventions.Steering(moved))
