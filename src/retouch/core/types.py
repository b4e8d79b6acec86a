"""The objects that stages exchange. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["raise", "lower"]
Split = Literal["train", "validation", "test"]
Better = Literal["higher", "lower", "none"]

DIRECTIONS: tuple[Direction, ...] = ("raise", "lower")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Progress = Callable[[str, int, int], None]
"""Progress of long work: what is being done, how much is done, and of how much (0: unknown)."""


def no_progress(description: str, done: int = 0, total: int = 0) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


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
    """One generation that a score is computed from: a line of `samples.jsonl`."""

    suite: str
    metric: str
    model: Literal["base", "edited"]
    prompt: tuple[Message, ...]
    response: str
    category: str  # assigned by the scorer
    value: float  # its contribution to the metric
    prefill: str = ""  # the forced beginning of the response
    group: str = ""
    entity: str = ""
    truncated: bool = False  # whether it reached the maximum length before its end


@dataclass(frozen=True)
class RoundEvent:
    """The state of the training after a round: a line of `events.jsonl`.

    Attributes:
        round: rounds finished, from 1.
        losses: the terms of the generator's loss, means over the round.
        discriminator_accuracy: on held-out examples, balanced; 0.5 is chance.
        validation_score: effect on the validation split, higher is better (`task.validation`).
        drift: KL(base || edited) on the validation split's retain set, nats a token.
        best: whether this is the best round so far.
        seconds: since the training began.
        retain_change: share of the retain examples whose response now begins as a target response.
        undone: whether the round was far over a limit and undone, and the learning rate halved.
    """

    round: int
    rounds: int
    losses: Mapping[str, float]
    discriminator_accuracy: float
    validation_score: float
    drift: float
    best: bool
    seconds: float
    retain_change: float = 0.0
    undone: bool = False


@dataclass(frozen=True)
class StageEvent:
    """The stage that the pipeline is in; `done` and `total` are 0 where they are unknown."""

    stage: str  # such as `load`, `responses`, `layers`, `contrast`, `train`, `safety`, `measure`
    detail: str  # a sentence for the user
    done: int = 0
    total: int = 0


Event = StageEvent | RoundEvent
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """An `OnEvent` that does nothing."""
