"""The objects that stages hand each other. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["raise", "lower"]
Split = Literal["train", "validation", "test"]
Better = Literal["higher", "lower", "none"]

DIRECTIONS: tuple[Direction, ...] = ("raise", "lower")
REPLY_SCORERS = (
    "refuse",
    "refuse_cleanly",
    "answer",
    "deflect",
    "degenerate",
    "correct",
    "cheerful",
    "gloomy",
    "neutral",
)
KL_SCORERS = ("kl_tokens", "kl_replies")
SHARE_SCORERS = ("gap", "lean")
SCORERS = (*REPLY_SCORERS, *SHARE_SCORERS, *KL_SCORERS)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a concept: a chat up to the reply, and what is known about the reply.

    Attributes:
        prompt: the turns up to the reply; the last one is the user's.
        label: which part of the contrast the row belongs to (`positive`, `negative`, `retain`, or
            the pack's own labels, such as `attack` or `science`).
        response: a reply to learn from; None stands for the base model's own.
        pair: rows of different labels with the same pair ask for the same thing.
        prefill: the beginning that is forced on the reply.
        accept: what a correct reply contains (each of them).
        group: what a score may be broken down by: the attack family, the stereotype.
        entity: what the splits keep apart.
    """

    prompt: tuple[Message, ...]
    label: str
    response: str | None = None
    pair: str | None = None
    prefill: str = ""
    accept: tuple[str, ...] = ()
    group: str = ""
    entity: str = ""


@dataclass(frozen=True)
class Sides:
    """What one direction of an edit moves, towards what, and what it holds still.

    Attributes:
        source: labels of the rows that move.
        target: labels of the rows that they move towards.
        hold: labels of the retain set.
        effect: the metric that says how far the direction went.
        effect_better: whether the direction raises that metric or lowers it.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    hold: tuple[str, ...]
    effect: str = ""
    effect_better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class MetricSpec:
    """A metric as a pack declares it.

    Attributes:
        suite: the family of metrics, such as `safety`.
        metric: its name, such as `attack_refusal`.
        labels: the rows of the split it is measured on.
        scorer: `refuse`, `answer`, `deflect`, `degenerate` (the share of replies of that kind),
            `refuse_cleanly` (of refusals whose first sentence refuses and is whole),
            `correct` (the share of replies that contain all of `accept`), `cheerful` or `gloomy`
            or `neutral` (the share of replies in that tone), `gap` (difference between the groups'
            mean probability of the first of two `choices`), `lean` (how far the two are from
            equally probable, row by row, 0 to 1), `kl_tokens` or `kl_replies` (nats a
            token from the base to the scored model, over all tokens or the reply's).
        better: which way is better for somebody who raises the concept's good side.
        choices: for `gap` and `lean`, the two continuations.
        groups: for `gap`, the two groups.
    """

    suite: str
    metric: str
    labels: tuple[str, ...]
    scorer: str
    unit: str = "rate"
    better: Better = "none"
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A concept: its rows by split, its directions, its metrics and its tuned settings.

    Attributes:
        name: short name, as in `--concept NAME`.
        title: one line.
        description: what it is about, in a sentence or two.
        rows: the examples of each split.
        sides: for each direction, what moves, towards what, and what is held.
        weakens: the direction that weakens a model's safety, which needs a written reason.
        settings: `EditConfig` fields tuned for each direction.
        metrics: what is measured on the validation and the test split.
        source: where it came from: a pack, or a file.
        hash: SHA-256 of everything above, in hexadecimal.
    """

    name: str
    title: str
    description: str
    rows: Mapping[Split, tuple[Example, ...]]
    sides: Mapping[Direction, Sides]
    weakens: Direction | None = None
    settings: Mapping[Direction, Mapping[str, Any]] = field(default_factory=dict)
    metrics: tuple[MetricSpec, ...] = ()
    source: str = ""
    hash: str = ""

    def select(self, split: Split, labels: Iterable[str]) -> list[Example]:
        """The rows of a split with any of the labels, in file order."""
        wanted = set(labels)
        return [row for row in self.rows[split] if row.label in wanted]


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value with its 95 % interval and the number of samples."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Record:
    """One line of `metrics.json`: a metric before and after the edit."""

    suite: str
    metric: str
    unit: str
    better: Better
    before: Score
    after: Score | None = None


@dataclass(frozen=True)
class Sample:
    """One generation that a score rests on: a line of `samples.jsonl`."""

    suite: str
    metric: str
    model: Literal["base", "edited"]
    prompt: tuple[Message, ...]
    reply: str
    kind: str
    value: float
    prefill: str = ""
    group: str = ""
    entity: str = ""


@dataclass(frozen=True)
class StepEvent:
    """The state of the game after a round: a line of `events.jsonl`.

    Attributes:
        round: rounds finished, from 1.
        rounds: rounds at the most.
        losses: the parts of the generator's loss, means over the round.
        discriminator_accuracy: of the round's discriminators on held-out rows, 0.5 is a guess.
        behaviour: mean log-probability of the wanted reply on validation prompts, nats a token.
        drift: from base to edited on held validation rows, nats a token.
        best: whether the round is the best so far, and within the drift guard.
        seconds: since the training began.
    """

    round: int
    rounds: int
    losses: Mapping[str, float]
    discriminator_accuracy: float
    behaviour: float
    drift: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class StageEvent:
    """What the pipeline is at: a stage begins, goes on or says what it found.

    Attributes:
        stage: `load`, `replies`, `layers`, `train`, `measure` or `write`.
        detail: a sentence for the user.
        done: how much of `total` is done; both 0 where it cannot be counted.
        total: the whole of it.
    """

    stage: str
    detail: str
    done: int = 0
    total: int = 0


Event = StageEvent | StepEvent
