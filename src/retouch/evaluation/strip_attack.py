"""Strip attack: the leading singular directions of an edit's update are removed.

An update of low rank concentrates its effect in few directions, which whoever has base and edited
weights can find and remove. The effect that is left tells how many directions carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retouch.core.errors import ConfigError
from retouch.core.types import Progress, Record, no_progress
from retouch.evaluation.evaluate import evaluate
from retouch.evaluation.statistics import Curve
from retouch.evaluation.strength_sweep import effect_and_drift, effect_curves
from retouch.models.singular_directions import stripped

if TYPE_CHECKING:
    from retouch.concepts.concept import Concept
    from retouch.core.types import Direction
    from retouch.models.editable_model import EditableModel

SUITE = "strip"
DIRECTIONS = (0, 1, 2, 4, 8)  # that are removed from each layer's update


def strip_attack(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    *,
    directions: Sequence[int] = DIRECTIONS,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> list[Curve]:
    """The effect and the drift of an edit without its leading singular directions.

    Raises:
        ConfigError: the direction names no effect, or the model has no adapter.
    """
    chosen = effect_and_drift(concept, direction)
    named = editable.model.named_parameters()
    weights = {name: weight for name, weight in named if ".lora_" in name}
    if not weights:
        raise ConfigError(
            f"{editable.name} has no adapter whose directions could be removed.",
            "Load the model with an adapter.",
            code="attack-not-applicable",
        )
    found: list[Sequence[Record]] = []
    for done, count in enumerate(directions, start=1):
        with stripped(weights, count):
            found.append(evaluate(editable, [chosen], limit=limit).metrics)
        progress("strip attack", done, len(directions))
    return effect_curves(concept.directions[direction], SUITE, "directions", directions, found)
