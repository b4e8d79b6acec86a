"""Choose the adapter strength: the smallest that keeps the effect of the largest within the limits.

The effect of an adapter saturates, and its drift grows with the square of its strength.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.types import Direction, Progress, no_progress
from retouch.evaluation.evaluate import MAX_NEW_TOKENS, BaseResults, evaluate
from retouch.evaluation.instruction_rules import is_decided_early
from retouch.models.adapter_merging import scaled

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

MAX_EXAMPLES = 32  # of each metric: a strength that loses one of them is too small


@dataclass(frozen=True)
class StrengthChoice:
    """A chosen strength.

    Attributes:
        strength: of the trained adapter.
        effects: for each strength that was tried, the value of each metric by name.
        excess: how far the model is over the limits at that strength; 1 within them or without any.
    """

    strength: float
    effects: dict[float, dict[str, float]]
    excess: float = 1.0


def choose_strength(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    strengths: Sequence[float],
    *,
    max_new_tokens: int,
    excess: Callable[[], float] | None = None,
    progress: Progress = no_progress,
) -> StrengthChoice:
    """Measure the effect at several strengths, and choose; the model stays as it is.

    The effect is the direction's own metric, and the others of the concept that the same scorer
    measures with the same better side, such as refusals of wrapped requests.

    Args:
        editable: the model with its adapter.
        concept: the edited concept.
        direction: the direction of the edit.
        strengths: to choose from; the highest within the limits is what the others are compared
            with, or simply the highest if none is.
        max_new_tokens: maximum length of a response, in tokens; the default one of an evaluation,
            if that is longer, where a rule needs the end of a response.
        excess: how far the model as it is now is over the limits, as `BestCheckpoint.excess`
            (default: there are no limits).
        progress: called while responses are generated.
    """
    ordered = sorted(strengths, reverse=True)

    # Validated only when it is reached: most choices end at the first or second.
    @functools.cache
    def excess_at(strength: float) -> float:
        if excess is None:
            return 1.0
        with scaled(editable, strength):
            return excess()

    highest = next((strength for strength in ordered if excess_at(strength) <= 1.0), None)
    limited = highest is not None
    highest = ordered[0] if highest is None else highest
    ordered = [strength for strength in ordered if strength <= highest]
    metrics = _effect_metrics(concept, direction)
    if len(ordered) < 2 or not metrics:
        return StrengthChoice(highest, {}, excess_at(highest))
    if not all(is_decided_early(spec.rule) for spec in metrics):
        max_new_tokens = max(max_new_tokens, MAX_NEW_TOKENS)
    chosen = dataclasses.replace(concept, metrics=metrics)
    sign = 1.0 if concept.directions[direction].effect_better == "higher" else -1.0
    effects: dict[float, dict[str, float]] = {}
    kept, base = highest, BaseResults()
    for strength in ordered:
        if limited and excess_at(strength) > 1.0:
            continue

        def show(description: str, done: int, total: int, strength: float = strength) -> None:
            progress(f"strength {strength:g}: {description}", done, total)

        with scaled(editable, strength):
            measured = evaluate(
                editable,
                [chosen],
                split="validation",
                limit=MAX_EXAMPLES,
                progress=show,
                max_new_tokens=max_new_tokens,
                known=base,
            ).metrics
        values = {record.metric: (record.after or record.before).value for record in measured}
        effects[strength] = values
        lost = max(sign * (effects[highest][name] - value) for name, value in values.items())
        if lost > 1.0 / MAX_EXAMPLES + 1e-9:
            break  # a lower strength keeps less
        kept = strength
    return StrengthChoice(kept, effects, excess_at(kept))


def _effect_metrics(concept: Concept, direction: Direction) -> tuple[MetricSpec, ...]:
    """The direction's metric, and those that the same scorer measures with the same better side."""
    name = concept.directions[direction].effect
    effect = next((spec for spec in concept.metrics if spec.metric == name), None)
    if effect is None:
        return ()
    return tuple(
        spec
        for spec in concept.metrics
        if spec.suite == effect.suite
        and (spec.scorer, spec.better) == (effect.scorer, effect.better)
        and concept.select("validation", spec.labels)
    )
