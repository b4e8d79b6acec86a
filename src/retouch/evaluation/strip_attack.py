"""Strip attack: the leading singular directions of an edit's update are removed.

An update of low rank concentrates its effect in few directions, which whoever has base and edited
weights can find and remove. The effect that is left tells how many directions carry it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from retouch.core.errors import ConfigError
from retouch.core.types import Progress, Record, Score, no_progress
from retouch.evaluation.evaluate import evaluate
from retouch.evaluation.statistics import Curve
from retouch.evaluation.strength_sweep import effect_and_drift

if TYPE_CHECKING:
    from retouch.concepts.concept import Concept
    from retouch.core.types import Direction
    from retouch.models.editable_model import EditableModel

SUITE = "strip"
DIRECTIONS = (0, 1, 2, 4, 8)  # that are removed from each layer's update


@contextmanager
def stripped(editable: EditableModel, directions: int) -> Iterator[None]:
    r"""Remove the leading singular directions of each layer's update $BA$ inside the context.

    The best approximation of rank `directions` is subtracted:
    $BA - \sum_{i \le k} \sigma_i u_i v_i^\top$. The weights are restored bit for bit on exit.

    Raises:
        ConfigError: the model has no adapter.
    """
    named = editable.model.named_parameters()
    weights = {name: weight for name, weight in named if ".lora_" in name}
    if not weights:
        raise ConfigError(
            f"{editable.name} has no adapter whose directions could be removed.",
            "Load the model with an adapter.",
            code="attack-not-applicable",
        )
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for name, a in weights.items():
            if ".lora_A." in name:
                _strip(a, weights[name.replace(".lora_A.", ".lora_B.")], directions)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(originals[name])


@torch.no_grad()
def _strip(a: torch.Tensor, b: torch.Tensor, directions: int) -> None:
    """Change A `[r, in]` and B `[out, r]` in place."""
    q_out, r_out = torch.linalg.qr(b.float())
    q_in, r_in = torch.linalg.qr(a.float().T)
    u, sizes, v = torch.linalg.svd(r_out @ r_in.T)
    sizes[:directions] = 0.0
    b.copy_(q_out @ u * sizes)
    a.copy_(v @ q_in.T)


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
    spec = concept.directions[direction]
    found: list[Sequence[Record]] = []
    for done, count in enumerate(directions, start=1):
        with stripped(editable, count):
            found.append(evaluate(editable, [chosen], limit=limit).metrics)
        progress("strip attack", done, len(directions))
    curves = []
    for records in zip(*found, strict=True):
        first = records[0]
        points: tuple[tuple[float, Any], ...] = tuple(
            (float(count), _after(record))
            for count, record in zip(directions, records, strict=True)
        )
        better = spec.effect_better if first.metric == spec.effect else first.better
        curves.append(Curve(SUITE, first.metric, first.unit, better, "directions", points))
    return curves


def _after(record: Record) -> Score:
    return record.before if record.after is None else record.after
