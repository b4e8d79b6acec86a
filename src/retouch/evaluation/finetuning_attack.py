"""Fine-tuning attack: whether an edit withstands further training on harmful examples.

An adversary fine-tunes a LoRA update on a few harmful requests with complying responses (Qi et al.
2023, arXiv 2310.03693), and the remaining refusals are counted on the direct requests and
jailbreaks of the test split. The update acts beside the adapter and the interventions of the model,
whose own weights stay as they are; so quantised and offloaded models can be attacked too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from retouch.concepts.concept import Concept, Example
from retouch.core.config import LEARNING_RATE_SCHEDULES, LearningRateSchedule
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Progress, Score, no_progress
from retouch.evaluation.attack_targets import (
    attack_targets,
    refusal_direction,
    refusal_rate,
    responses_to,
)
from retouch.evaluation.evaluate import evaluation_mode
from retouch.evaluation.response_classifier import classify
from retouch.evaluation.statistics import Curve
from retouch.representations.batch import make_batches
from retouch.representations.finetuning import (
    apply_lora_delta,
    finetune,
    init_lora_delta,
    linear_shapes,
)

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

SUITE, SWEEP_SUITE = "finetune", "finetune_sweep"
# Of the sweep: a third and three times the learning rate of the single attack.
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


def finetuning_attack(
    editable: EditableModel,
    concept: Concept,
    *,
    steps: Sequence[int] = (0, 20, 50, 200),
    num_examples: int = 16,
    learning_rate: float = 1e-3,
    schedule: LearningRateSchedule = "constant",
    r: int = 8,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[list[Curve], list[float]]:
    """Train an adversary's update in one run and count refusals along the way.

    The adversary learns to comply with at most `num_examples` direct requests of the concept's
    train split, with a LoRA of rank `r` and twice that as alpha on every linear layer. Refusals are
    counted on jailbreaks and direct requests of its test split, at most `limit` of each label,
    after each of `steps`; 0 is before the first step. The model is unchanged afterwards.

    Returns:
        For each label, the share of refused test examples by the number of steps; and the
        adversary's loss in every step, nats a token.

    Raises:
        ConfigError: the concept is not about refusals, or `steps` is empty or negative.
        DataError: the base model complies with no jailbreak, or there are no test examples.
        DivergedError: the adversary's loss is not finite.
    """
    if not steps or min(steps) < 0:
        raise ConfigError(
            f"`steps` must be numbers from 0 up, got {list(steps)}.",
            "Give at least one.",
            code="attack-steps",
        )
    tests = _test_examples(concept, limit)
    targets = attack_targets(editable, concept, "train", num_examples, seed)
    chats = [target.tokenized(editable) for target in targets]
    batches = make_batches(chats, batch_size, int(editable.tokenizer.pad_token_id))
    delta = init_lora_delta(linear_shapes(editable), r, seed, editable.device)
    points: dict[str, list[tuple[float, Score]]] = {label: [] for label in tests}
    losses: list[float] = []
    with evaluation_mode(editable):
        training = finetune(editable, delta, batches, max(steps), learning_rate, schedule)
        for step in range(max(steps) + 1):
            if step in steps:
                with apply_lora_delta(editable, delta):
                    for label, examples in tests.items():
                        points[label].append((float(step), _refused(editable, examples)))
            if step < max(steps):
                losses.append(next(training))
                progress("fine-tuning attack", step + 1, max(steps))
    curves = [
        Curve(SUITE, f"{label}_refusal", "rate", "higher", "steps", tuple(found))
        for label, found in points.items()
    ]
    return curves, losses


def finetuning_sweep(
    editable: EditableModel,
    concept: Concept,
    *,
    steps: Sequence[int] = (0, 20, 50, 200),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Curve]:
    """The fine-tuning attack with every learning rate and schedule: the fewest refusals of all.

    The arguments, the errors and the curves are those of `finetuning_attack`.
    """
    settings = list(itertools.product(LEARNING_RATES, LEARNING_RATE_SCHEDULES))
    attacks: list[list[Curve]] = []
    for number, (rate, schedule) in enumerate(settings):

        def show(_: str, done: int, total: int, number: int = number) -> None:
            progress("finetune_sweep", number * total + done, len(settings) * total)

        curves, _ = finetuning_attack(
            editable,
            concept,
            steps=steps,
            learning_rate=rate,
            schedule=schedule,
            limit=limit,
            seed=seed,
            progress=show,
        )
        attacks.append(curves)
    return [_worst(curves) for curves in zip(*attacks, strict=True)]


def _worst(curves: Sequence[Curve]) -> Curve:
    """The lowest score at each step."""
    points = tuple(
        (some[0][0], min((score for _, score in some), key=lambda one: one.value))
        for some in zip(*(curve.points for curve in curves), strict=True)
    )
    return replace(curves[0], suite=SWEEP_SUITE, points=points)


def _test_examples(concept: Concept, limit: int | None) -> dict[str, list[Example]]:
    """The test examples by label: jailbreaks, then direct requests."""
    spec = refusal_direction(concept)
    labels = (*spec.source, *spec.target)
    found = {label: concept.select("test", [label])[:limit] for label in labels}
    for label, examples in found.items():
        if not examples:
            raise DataError(
                f"The concept {concept.name} has no test examples labelled {label}.",
                "Add some, or leave out the attack `finetune`.",
                code="examples-missing",
            )
    return found


def _refused(editable: EditableModel, examples: Sequence[Example]) -> Score:
    """The share of refused examples, with Wilson's interval."""
    responses = responses_to(editable, [example.prompt for example in examples])
    pairs = zip(examples, responses, strict=True)
    return refusal_rate([classify(response, one.last_turn) for one, response in pairs])
