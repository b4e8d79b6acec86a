"""The report of a contrast check: rates, samples, gap, separability and findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from retouch.core.finding import LEVELS, Finding, Level
from retouch.core.formatting import show_score
from retouch.core.serialization import to_plain
from retouch.core.types import Direction, Score

ContrastSet = Literal["source", "target", "given"]


@dataclass(frozen=True)
class ContrastSample:
    """A response that a rate of the report is computed from.

    Attributes:
        set: `source` or `target` for a response of the base model to such a prompt, `given` for a
            target response of the concept.
        prompt: the last user turn.
        response: its text.
        category: assigned by the scorer.
        desired: whether it shows the concept's behaviour in the direction of the edit.
        truncated: whether it was cut at the maximum length.
    """

    set: ContrastSet
    prompt: str
    response: str
    category: str
    desired: bool
    truncated: bool = False


@dataclass(frozen=True)
class ContrastReport:
    """The contrast between source and target on the base model.

    Attributes:
        concept: the name of the concept.
        direction: the direction of the edit.
        metric: the metric of the direction's effect, whose scorer decides which responses show the
            desired behaviour; empty if there is none or it scores no responses.
        better: whether the direction increases or decreases that metric.
        num_examples: how many examples of a set were compared, at most.
        paired: whether source examples have target counterparts.
        num_given: how many of the target responses the concept gives.
        source: the rate of the base's responses to source prompts that show the behaviour.
        target: the same for target prompts, under their context if there is one.
        given: the same for the target responses that the concept gives.
        gap: how much likelier the target responses are after the target prompt than after the
            source prompt: difference of the mean log-probabilities, nats a token.
        separability: held-out accuracy of linear classifiers of the states of source and target;
            0.5 is chance.
        layers: the layers whose states were classified, 0-based.
        samples: at most three responses of each kind.
        findings: errors first, then warnings.
        seconds: the duration of the check.
    """

    concept: str
    direction: Direction
    metric: str
    better: Literal["higher", "lower"]
    num_examples: int
    paired: bool
    num_given: int
    source: Score | None
    target: Score | None
    given: Score | None
    gap: Score | None
    separability: Score | None
    layers: tuple[int, ...]
    samples: tuple[ContrastSample, ...]
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def level(self) -> Level:
        """The most severe level of the findings."""
        return next(
            (level for level in LEVELS if any(one.level == level for one in self.findings)), "ok"
        )

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop the edit."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def rows(self) -> list[tuple[str, Score, str]]:
        """What was measured: a description, the score and its unit."""
        desired = f"show {self.metric}" if self.better == "higher" else f"lack {self.metric}"
        found = [
            (f"responses to the source that {desired}", self.source, "rate"),
            (f"responses to the target that {desired}", self.target, "rate"),
            (f"given responses that {desired}", self.given, "rate"),
            ("gap in log-probability, nats a token", self.gap, "nats a token"),
            ("accuracy of classifying the states", self.separability, "rate"),
        ]
        return [(name, score, unit) for name, score, unit in found if score is not None]

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON values, with `level`."""
        return {"level": self.level, **to_plain(self)}

    def __str__(self) -> str:
        rows = [
            f"{name}: {show_score(score, unit)}, n {score.n}" for name, score, unit in self.rows
        ]
        return "\n".join([*rows, *(f"{one.level}: {one.message}" for one in self.findings)])
