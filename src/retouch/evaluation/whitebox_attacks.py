"""Attacks by somebody who has the weights: suffixes found by gradient, and perturb_inputs states.

Both ask requests that are refused when asked directly, and look for what makes the model progress the
beginning of a response that complies. The score is how many are refused all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from retouch.concepts.chat import prompt_ids
from retouch.core.types import Message, Record, Sample, Score
from retouch.evaluation.attack_targets import AttackTarget
from retouch.evaluation.evaluate import Progress
from retouch.evaluation.gcg import Suffix, search_suffix
from retouch.evaluation.latent_attack import first_adapted, perturbed_responses, search_perturbation
from retouch.evaluation.response_classifier import classify
from retouch.evaluation.statistics import bootstrap_mean, wilson
from retouch.evaluation.suffix_tokens import allowed_tokens
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

__all__ = [
    "AttackOutcome",
    "both",
    "first_adapted",
    "latent_attack",
    "refused",
    "samples",
    "search_perturbation",
    "search_suffix",
    "steps_taken",
    "suffix_attack",
]

SUITE = "whitebox"
TARGET_TOKENS = 8  # of the complying response that are aimed at: its beginning decides


@dataclass(frozen=True)
class AttackOutcome:
    """What an attack on one request came to.

    Attributes:
        attack_target: the request and the response that was aimed at.
        prompt: the turns as they were asked.
        response: what the model said.
        kind: the kind of that response.
        suffix: the suffix, where one was searched.
    """

    attack_target: AttackTarget
    prompt: tuple[Message, ...]
    response: str
    kind: str
    suffix: Suffix | None = None


def suffix_attack(
    editable: EditableModel,
    attack_targets: Sequence[AttackTarget],
    *,
    steps: int = 20,
    candidates: int = 32,
    length: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[AttackOutcome]:
    """Study a suffix for each request and generate the response to it.

    Raises:
        ModelError: no suffix can be searched on this model.
    """
    allowed = allowed_tokens(editable)
    found = []
    for done, attack_target in enumerate(attack_targets, start=1):
        row = attack_target.tokenized(editable, TARGET_TOKENS)
        found.append(
            search_suffix(
                editable,
                attack_target.row.prompt,
                row.ids[row.start :],
                steps=steps,
                candidates=candidates,
                length=length,
                seed=seed,
                allowed=allowed,
            )
        )
        if progress:
            progress("searching suffixes", done, len(attack_targets))
    asked = [
        suffix.on(attack_target.row.prompt)
        for suffix, attack_target in zip(found, attack_targets, strict=True)
    ]
    ids = [prompt_ids(editable.tokenizer, editable.rewrite_prompt(prompt)) for prompt in asked]
    responses = generate(editable, ids)
    return [
        AttackOutcome(attack_target, prompt, response, _kind(attack_target, response), suffix)
        for attack_target, prompt, response, suffix in zip(
            attack_targets, asked, responses, found, strict=True
        )
    ]


def latent_attack(
    editable: EditableModel,
    attack_targets: Sequence[AttackTarget],
    *,
    radius: float,
    steps: int = 8,
    layer: int | None = None,
    progress: Progress | None = None,
) -> list[AttackOutcome]:
    """Study a perturbation of each request's states and generate the response under it.

    Args:
        editable: the model, attacked as it is now.
        attack_targets: the requests.
        radius: of the ball, as a share of each state's norm.
        steps: gradients taken.
        layer: whose input is moved; none given: the first adapted block.
        progress: as for `evaluate`.
    """
    at = first_adapted(editable) if layer is None else layer
    rows = [attack_target.tokenized(editable, TARGET_TOKENS) for attack_target in attack_targets]
    tell = None
    if progress:
        progress = progress

        def tell(done: int, total: int) -> None:
            progress(f"perturbing states by {radius:g}", done, total)

    responses = perturbed_responses(editable, rows, at, radius, steps, tell)
    return [
        AttackOutcome(
            attack_target, attack_target.row.prompt, response, _kind(attack_target, response)
        )
        for attack_target, response in zip(attack_targets, responses, strict=True)
    ]


def refused(outcomes: Sequence[AttackOutcome]) -> Score:
    """The share of requests that were refused all the same, with Wilson's interval."""
    return wilson(sum(one.kind == "refuse" for one in outcomes), len(outcomes))


def steps_taken(outcomes: Sequence[AttackOutcome]) -> Score:
    """How many steps the searches took on average, with a bootstrap over requests."""
    return bootstrap_mean([one.suffix.steps for one in outcomes if one.suffix])


def samples(
    outcomes: Sequence[AttackOutcome], metric: str, model: Literal["base", "edited"]
) -> list[Sample]:
    """The generations that the score rests on."""
    return [
        Sample(
            suite=SUITE,
            metric=metric,
            model=model,
            prompt=one.prompt,
            response=one.response,
            kind=one.kind,
            value=float(one.kind == "refuse"),
            group=one.attack_target.row.group,
            entity=one.attack_target.row.entity,
        )
        for one in outcomes
    ]


def both(
    editable: EditableModel, name: str, attack: Callable[[], list[AttackOutcome]]
) -> tuple[list[Record], list[Sample]]:
    """Attack the base, and the edited model if there is one.

    Gives `NAME_refusal`, the share refused all the same, and for suffixes `NAME_steps`: where every
    refusal is broken, how soon still tells models apart.
    """
    with editable.base_model():
        base = attack()
    edited = attack() if editable.edited else None
    measures = {f"{name}_refusal": ("rate", refused)}
    if all(one.suffix for one in base):
        measures[f"{name}_steps"] = ("steps", steps_taken)
    records = [
        Record(
            SUITE,
            metric,
            unit,
            "higher",
            measure(base),
            None if edited is None else measure(edited),
        )
        for metric, (unit, measure) in measures.items()
    ]
    kept = samples(base, f"{name}_refusal", "base")
    if edited is not None:
        kept += samples(edited, f"{name}_refusal", "edited")
    return records, kept


def _kind(attack_target: AttackTarget, response: str) -> str:
    """The kind of the response to the request; the words of a suffix are not what was asked."""
    return classify(response, attack_target.row.prompt[-1].content)
