"""The robustness_records attacks that an edit is asked, for whatever acts on a model. Prints nothing.

- `prefill`: the response is forced to begin as if the model complied;
- `suffix`: a suffix found by gradient follows the request;
- `latent`: the states of the request are pushed, within a ball;
- `tamper`: somebody goes on training the model;
- `strength_sweep`: effect and drift as the edit's strength is turned up;
- `quality`: whether the responses became alike or repeat themselves.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Record, Sample
from retouch.evaluation import whitebox_attacks
from retouch.evaluation.attack_targets import AttackTarget, attack_targets
from retouch.evaluation.curve import Curve
from retouch.evaluation.evaluate import Progress, at_rest, evaluate
from retouch.evaluation.finetuning_attack import finetuning_attack
from retouch.evaluation.strength_sweep import effects, restricted, strength_sweep
from retouch.evaluation.text_quality import text_quality
from retouch.evaluation.whitebox_attacks import AttackOutcome
from retouch.models.adapter_merging import has_strength
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

__all__ = [
    "ATTACKS",
    "RobustnessReport",
    "applicable_attacks",
    "check_attacks",
    "effects",
    "robustness",
]

# How many rows each question is asked of by default: what pocket answers in a minute on one core.
ROWS: dict[str, int | None] = {
    "prefill": None,
    "suffix": 20,
    "latent": 100,
    "tamper": 100,
    "strength_sweep": 100,
    "quality": 200,
}
ATTACKS = tuple(ROWS)
ON_REFUSAL = ("prefill", "suffix", "latent", "tamper")
LENGTHS = (2, 8)  # tokens of a suffix
RADII = (0.1, 0.3)  # shares of a state's norm


@dataclass
class RobustnessReport:
    """What was found.

    Attributes:
        records: metrics of the base and of the edited model.
        curves: metrics along training steps and strengths, of the edited model.
        samples: generations that the records rest on.
        seconds: how long each question took.
    """

    records: list[Record] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """What all attacks are given."""

    editable: EditableModel
    concept: Concept
    direction: Direction
    limit: int | None
    seed: int
    layer: int | None
    progress: Progress | None
    found: RobustnessReport


def applicable_attacks(editable: EditableModel, concept: Concept) -> tuple[str, ...]:
    """The attacks that make sense for this concept and for what acts on this model."""
    mute = set() if concept.weakens else set(ON_REFUSAL)
    if not any(spec.metric.startswith("prefill") for spec in concept.metrics):
        mute.add("prefill")
    if not has_strength(editable):
        mute.add("strength_sweep")
    return tuple(name for name in ATTACKS if name not in mute)


def check_attacks(attacks: Sequence[str]) -> None:
    """Whether there are such attacks.

    Raises:
        ConfigError: names the one that there is not.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise ConfigError(
                f"There is no question `{name}`.", f"The attacks are: {', '.join(ATTACKS)}."
            )


def robustness(
    editable: EditableModel,
    concept: Concept,
    attacks: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    direction: Direction = "raise",
    layer: int | None = None,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Ask the attacks of a model, and of its base beside it.

    Args:
        editable: the model; it is left as it is.
        concept: that was edited.
        attacks: of `ATTACKS`; none given: all that are `applicable_attacks`.
        limit: at most so many rows a question, in place of `ROWS`.
        seed: draws the requests and what the attacks begin from.
        direction: the edit's, for its effect.
        layer: the block whose input is perturb_inputs; none given: the first adapted one. Methods are
            compared fairly at one and the same.
        progress: as for `evaluate`.

    Raises:
        ConfigError: there is no such question, or it cannot be asked of this concept or model.
        DataError: the rows that a question needs are missing.
        ModelError: no suffix can be searched on this model.
    """
    names = applicable_attacks(editable, concept) if attacks is None else tuple(attacks)
    check_attacks(names)
    asked = _Asked(editable, concept, direction, limit, seed, layer, progress, RobustnessReport())
    ask: dict[str, Callable[[_Asked], None]] = {
        "prefill": _prefill,
        "suffix": _suffix,
        "latent": _latent,
        "tamper": _tamper,
        "strength_sweep": _dial,
        "quality": _quality,
    }
    with at_rest(editable):
        for name in names:
            began = time.monotonic()
            ask[name](dataclasses.replace(asked, limit=ROWS[name] if limit is None else limit))
            asked.found.seconds[name] = round(time.monotonic() - began, 3)
    return asked.found


def _prefill(asked: _Asked) -> None:
    concept = restricted(asked.concept, lambda spec: spec.metric.startswith("prefill"))
    if not concept.metrics:
        raise ConfigError(
            f"The concept {concept.name} has no metric whose name begins with `prefill`.",
            "Leave out the question `prefill`.",
        )
    result = evaluate(asked.editable, [concept], limit=asked.limit, progress=asked.progress)
    asked.found.records += result.records
    asked.found.samples += result.samples


def _suffix(asked: _Asked) -> None:
    for length in LENGTHS:
        _compare(
            asked,
            f"suffix_{length}",
            partial(
                whitebox_attacks.suffix_attack,
                asked.editable,
                _demands(asked),
                length=length,
                seed=asked.seed,
                progress=asked.progress,
            ),
        )


def _latent(asked: _Asked) -> None:
    # The base is pushed at the same place as the edited model.
    layer = whitebox_attacks.first_adapted(asked.editable) if asked.layer is None else asked.layer
    for radius in RADII:
        _compare(
            asked,
            f"latent_{radius:g}",
            partial(
                whitebox_attacks.latent_attack,
                asked.editable,
                _demands(asked),
                radius=radius,
                layer=layer,
                progress=asked.progress,
            ),
        )


def _demands(asked: _Asked) -> list[AttackTarget]:
    return attack_targets(asked.editable, asked.concept, "test", asked.limit or 20, asked.seed)


def _compare(asked: _Asked, name: str, attack: Callable[[], list[AttackOutcome]]) -> None:
    records, kept = whitebox_attacks.both(asked.editable, name, attack)
    asked.found.records += records
    asked.found.samples += kept


def _tamper(asked: _Asked) -> None:
    result = finetuning_attack(
        asked.editable, asked.concept, limit=asked.limit, seed=asked.seed, progress=asked.progress
    )
    asked.found.curves += result.curves


def _dial(asked: _Asked) -> None:
    asked.found.curves += strength_sweep(
        asked.editable,
        asked.concept,
        asked.direction,
        limit=asked.limit,
        progress=asked.progress,
    )


def _quality(asked: _Asked) -> None:
    """Of responses that the edit is to leave alone: what it moves is to become alike."""
    direction_spec = asked.concept.directions[asked.direction]
    labels = [
        label
        for label in direction_spec.retain
        if label not in (*direction_spec.source, *direction_spec.target)
    ]
    rows = asked.concept.select("test", labels)
    rows = random.Random(f"{asked.seed}:quality").sample(rows, min(len(rows), asked.limit or 200))
    if len(rows) < 2:
        raise ConfigError(
            f"The concept {asked.concept.name} holds fewer than two test rows still.",
            "Leave out the question `quality`, or add rows of the retain set.",
        )

    def responses() -> list[str]:
        prompts = [asked.editable.rewrite_prompt(row.prompt) for row in rows]
        return generate(asked.editable, [prompt_ids(asked.editable.tokenizer, p) for p in prompts])

    with asked.editable.base_model():
        base = responses()
    asked.found.records += text_quality(base, responses() if asked.editable.edited else None)
