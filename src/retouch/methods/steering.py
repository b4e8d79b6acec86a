"""Vectors added to the hidden states while the model runs: difference of means, reading vectors."""

from __future__ import annotations

from typing import Any

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.directions import (
    contrast_states,
    layer_at_offset,
    mean_difference,
    reading_direction,
)
from retouch.methods.method import Method, MethodSettings
from retouch.models import interventions
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


class SteeringSettings(MethodSettings):
    """The strength of the vector, its layer, and the positions that it is computed from."""

    strength: float = option(
        0.75, "strength of the vector; 1 is the whole difference", search=(0.25, 4), log=True
    )
    offset: int = option(0, "layer, relative to the first that Retouch reads", search=(-1, 2))
    positions: int = option(
        1, "response positions that are read, from the last prompt token on", choices=(1, 2, 4)
    )


class Steering(Method):
    """Add the difference of means to the output of one layer, at every position.

    Rimsky et al. steer only after the prompt. Here, as in the steering libraries, the prompt is
    steered too, since an edit also acts on every token that the model reads.
    """

    id = "steering"
    title = "Steering (CAA)"
    source = "Rimsky et al. 2023, arXiv 2312.06681"
    settings = SteeringSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Compute the vector from the training examples and add it."""
        layer = layer_at_offset(task, editable.layout.depth, settings.offset)
        states = contrast_states(editable, task, [layer], settings.positions)[layer]
        vector = settings.strength * mean_difference(states)
        editable.intervene(interventions.Steering({layer: vector.to(editable.device)}))


class ReadingVectorSettings(SteeringSettings):
    """Steering settings with the number of layers."""

    # Lower than for one layer, since the vectors of all layers add up.
    strength: float = option(
        0.25, "strength of each vector; 1 is the whole difference", search=(0.1, 4), log=True
    )
    span: int = option(4, "number of layers that get a vector", search=(1, 4))


class ReadingVector(Method):
    r"""Add to each of several layers its own reading vector.

    $h_l \leftarrow h_l + s \, |\bar h^+_l - \bar h^-_l| \, v_l$, with the unit vector $v_l$ of the
    layer and the strength $s$: at 1, the vector is as long as the difference of means.
    """

    id = "reading-vector"
    title = "Reading vector (RepE)"
    source = "Zou et al. 2023, arXiv 2310.01405"
    settings = ReadingVectorSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Compute a vector for every layer from the training examples and add them."""
        depth = editable.layout.depth
        first = layer_at_offset(task, depth, settings.offset)
        layers = range(first, min(first + settings.span, depth))
        vectors = {}
        for layer, states in contrast_states(editable, task, layers, settings.positions).items():
            length = settings.strength * mean_difference(states).norm()
            vectors[layer] = (length * reading_direction(states, task.seed)).to(editable.device)
        editable.intervene(interventions.Steering(vectors))
