"""The harder questions that an edit is asked, for whatever acts on a model. Prints nothing.

- `prefill`: the reply is forced to begin as if the model complied;
- `suffix`: a suffix found by gradient follows the request;
- `latent`: the states of the request are pushed, within a ball;
- `tamper`: somebody goes on training the model;
- `dial`: effect and drift as the edit's strength is turned up;
- `quality`: whether the replies became alike or repeat themselves.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from retouch.concepts.render import prompt_ids
from retouch.core.errors import ConfigError
from retouch.core.types import Concept, Direction, Record, Sample
from retouch.evaluation import whitebox
from retouch.evaluation.curve import Curve
from retouch.evaluation.demand import Demand, demands
from retouch.evaluation.dial import dial, effects, restricted
from retouch.evaluation.runner import Progress, at_rest, evaluate
from retouch.evaluation.tamper import tamper
from retouch.evaluation.text_quality import text_quality
from retouch.evaluation.whitebox import Outcome
from retouch.models.compose import dialable
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.load import LoadedModel

__all__ = ["QUESTIONS", "Stress", "askable", "check_questions", "effects", "stress"]

# How many rows each question is asked of by default: what pocket answers in a minute on one core.
ROWS: dict[str, int | None] = {
    "prefill": None,
    "suffix": 20,
    "latent": 100,
    "tamper": 100,
    "dial": 100,
    "quality": 200,
}
QUESTIONS = tuple(ROWS)
ON_REFUSAL = ("prefill", "suffix", "latent", "tamper")
LENGTHS = (2, 8)  # tokens of a suffix
RADII = (0.1, 0.3)  # shares of a state's norm


@dataclass
class Stress:
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
    """What all questions are given."""

    loaded: LoadedModel
    concept: Concept
    direction: Direction
    limit: int | None
    seed: int
    layer: int | None
    progress: Progress | None
    found: Stress


def askable(loaded: LoadedModel, concept: Concept) -> tuple[str, ...]:
    """The questions that make sense for this concept and for what acts on this model."""
    mute = set() if concept.weakens else set(ON_REFUSAL)
    if not any(spec.metric.startswith("prefill") for spec in concept.metrics):
        mute.add("prefill")
    if not dialable(loaded):
        mute.add("dial")
    return tuple(name for name in QUESTIONS if name not in mute)


def check_questions(questions: Sequence[str]) -> None:
    """Whether there are such questions.

    Raises:
        ConfigError: names the one that there is not.
    """
    for name in questions:
        if name not in QUESTIONS:
            raise ConfigError(
                f"There is no question `{name}`.", f"The questions are: {', '.join(QUESTIONS)}."
            )


def stress(
    loaded: LoadedModel,
    concept: Concept,
    questions: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    direction: Direction = "raise",
    layer: int | None = None,
    progress: Progress | None = None,
) -> Stress:
    """Ask the questions of a model, and of its base beside it.

    Args:
        loaded: the model; it is left as it is.
        concept: that was edited.
        questions: of `QUESTIONS`; none given: all that are `askable`.
        limit: at most so many rows a question, in place of `ROWS`.
        seed: draws the requests and what the attacks begin from.
        direction: the edit's, for its effect.
        layer: the block whose input is perturbed; none given: the first adapted one. Methods are
            compared fairly at one and the same.
        progress: as for `evaluate`.

    Raises:
        ConfigError: there is no such question, or it cannot be asked of this concept or model.
        DataError: the rows that a question needs are missing.
        ModelError: no suffix can be searched on this model.
    """
    names = askable(loaded, concept) if questions is None else tuple(questions)
    check_questions(names)
    asked = _Asked(loaded, concept, direction, limit, seed, layer, progress, Stress())
    ask: dict[str, Callable[[_Asked], None]] = {
        "prefill": _prefill,
        "suffix": _suffix,
        "latent": _latent,
        "tamper": _tamper,
        "dial": _dial,
        "quality": _quality,
    }
    with at_rest(loaded):
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
    result = evaluate(asked.loaded, [concept], limit=asked.limit, progress=asked.progress)
    asked.found.records += result.records
    asked.found.samples += result.samples


def _suffix(asked: _Asked) -> None:
    for length in LENGTHS:
        _compare(
            asked,
            f"suffix_{length}",
            partial(
                whitebox.suffix_attack,
                asked.loaded,
                _demands(asked),
                length=length,
                seed=asked.seed,
                progress=asked.progress,
            ),
        )


def _latent(asked: _Asked) -> None:
    # The base is pushed at the same place as the edited model.
    layer = whitebox.first_adapted(asked.loaded) if asked.layer is None else asked.layer
    for radius in RADII:
        _compare(
            asked,
            f"latent_{radius:g}",
            partial(
                whitebox.latent_attack,
                asked.loaded,
                _demands(asked),
                radius=radius,
                layer=layer,
                progress=asked.progress,
            ),
        )


def _demands(asked: _Asked) -> list[Demand]:
    return demands(asked.loaded, asked.concept, "test", asked.limit or 20, asked.seed)


def _compare(asked: _Asked, name: str, attack: Callable[[], list[Outcome]]) -> None:
    records, kept = whitebox.both(asked.loaded, name, attack)
    asked.found.records += records
    asked.found.samples += kept


def _tamper(asked: _Asked) -> None:
    result = tamper(
        asked.loaded, asked.concept, limit=asked.limit, seed=asked.seed, progress=asked.progress
    )
    asked.found.curves += result.curves


def _dial(asked: _Asked) -> None:
    asked.found.curves += dial(
        asked.loaded,
        asked.concept,
        asked.direction,
        limit=asked.limit,
        progress=asked.progress,
    )


def _quality(asked: _Asked) -> None:
    """Of replies that the edit is to leave alone: what it moves is to become alike."""
    sides = asked.concept.sides[asked.direction]
    labels = [label for label in sides.hold if label not in (*sides.source, *sides.target)]
    rows = asked.concept.select("test", labels)
    rows = random.Random(f"{asked.seed}:quality").sample(rows, min(len(rows), asked.limit or 200))
    if len(rows) < 2:
        raise ConfigError(
            f"The concept {asked.concept.name} holds fewer than two test rows still.",
            "Leave out the question `quality`, or add rows of the retain set.",
        )

    def replies() -> list[str]:
        prompts = [asked.loaded.rewritten(row.prompt) for row in rows]
        return generate(asked.loaded, [prompt_ids(asked.loaded.tokenizer, p) for p in prompts])

    with asked.loaded.reference():
        base = replies()
    asked.found.records += text_quality(base, replies() if asked.loaded.edited else None)
