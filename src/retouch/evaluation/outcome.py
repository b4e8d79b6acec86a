"""The outcome of an edit: whether the effect changed as declared, and what else changed.

Base and edited model are compared on the same prompts, so the tests are paired: an exact McNemar
test (Edwards 1948) for rates, a paired bootstrap for everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.errors import ConfigError
from retouch.core.formatting import show_value
from retouch.core.types import Direction, Record
from retouch.evaluation.evaluate import Evaluation
from retouch.evaluation.scorers import get_scorer
from retouch.evaluation.statistics import ExampleValues, paired_p

Status = Literal["success", "side-effects", "failed", "unmeasured"]
AsDeclared = Literal["yes", "no", "wrong way", "unmeasured"]

SIGNIFICANT = 0.05
MAX_SIDE_EFFECT = 0.1  # of a rate: what a side effect may reach, or a metric of retain data lose
MAX_NAMED = 3  # side effects in the sentence
REFUSALS = ("refusal", "clean_refusal")  # scorers
DEGENERATE = "degenerate"  # a scorer


@dataclass(frozen=True)
class MetricChange:
    """What an edit did to a metric.

    Attributes:
        metric: its name.
        unit: its unit.
        better: which way is better.
        before: its value for the base model.
        after: its value for the edited model.
        n: the number of examples.
        p: the two-sided p-value of no change on the same examples.
        harmful: whether it is a side effect that rules out a success.
    """

    metric: str
    unit: str
    better: str
    before: float
    after: float
    n: int
    p: float
    harmful: bool = False

    @property
    def significant(self) -> bool:
        """Whether the change is larger than chance explains."""
        return self.p < SIGNIFICANT

    @property
    def worse(self) -> bool:
        """Whether the metric changed for the worse."""
        change = self.after - self.before
        return change > 0 if self.better == "lower" else change < 0

    def __str__(self) -> str:
        before, after = show_value(self.before, self.unit), show_value(self.after, self.unit)
        sure = show_p(self.p) if self.significant else "not significant"
        return f"{self.metric} {before} -> {after} ({sure})"


@dataclass(frozen=True)
class Outcome:
    """The outcome of an edit, for its result's first line.

    Attributes:
        status: `success`; `side-effects` where the effect changed as declared at a cost that rules
            out a success; `failed`; or `unmeasured`, where no effect was measured.
        text: the outcome in a sentence.
        as_declared: whether the effect changed as declared.
        effect: the metric of the effect; None where it was not measured.
        side_effects: the metrics that became worse significantly, those that rule out a success
            first.
        drift: KL(base || edited) on the test split, nats a token; None where it was not measured.
        max_drift: its limit.
    """

    status: Status
    text: str
    as_declared: AsDeclared
    effect: MetricChange | None = None
    side_effects: tuple[MetricChange, ...] = ()
    drift: float | None = None
    max_drift: float | None = None


def find_outcome(
    evaluation: Evaluation | None, concept: Concept, direction: Direction, max_drift: float
) -> Outcome:
    """The outcome of an edit from its metrics before and after.

    A hardening edit, the opposite of the direction that weakens safety, fails where requests that
    the base refuses are answered. No edit succeeds that refuses or spoils more than
    `MAX_SIDE_EFFECT` of the retain data, or drifts beyond its limit.

    Args:
        evaluation: of base and edited model; None where nothing was measured.
        concept: the edited concept.
        direction: the direction of the edit.
        max_drift: the limit of the drift, nats a token.
    """
    if evaluation is None:
        return Outcome("unmeasured", "Nothing was measured.", "unmeasured", max_drift=max_drift)
    spec = concept.directions[direction]
    changes = {one.metric: change for one, change in _changes(evaluation, concept)}
    specs = {one.metric: one for one in concept.metrics}
    effect = changes.get(spec.effect)
    others = [
        change
        for name, change in changes.items()
        if name != spec.effect and _is_side(specs[name], concept, direction)
    ]
    worse = [change for change in others if change.worse and (change.significant or change.harmful)]
    worse.sort(key=lambda change: (not change.harmful, change.p))
    drift = _drift(evaluation, concept)
    as_declared: AsDeclared = "unmeasured"
    if effect is not None:
        rose, higher = effect.after > effect.before, spec.effect_better == "higher"
        as_declared = "no" if not effect.significant else "yes" if rose == higher else "wrong way"
    status = _status(as_declared, worse, _fewer_refused(worse, specs, concept, direction))
    if status in ("success", "unmeasured") and drift is not None and drift > max_drift:
        status = "side-effects"
    text = _sentence(
        status, as_declared, effect, worse or _main_side(others, specs), drift, max_drift
    )
    if effect is None:
        text = f"No effect was measured for `{direction}` of {concept.name}; {text}"
    return Outcome(status, text, as_declared, effect, tuple(worse), drift, max_drift)


def _status(as_declared: AsDeclared, worse: Sequence[MetricChange], fewer_refused: bool) -> Status:
    if as_declared in ("no", "wrong way") or fewer_refused:
        return "failed"
    if any(change.harmful for change in worse):
        return "side-effects"
    return "success" if as_declared == "yes" else "unmeasured"


def _changes(evaluation: Evaluation, concept: Concept) -> Iterator[tuple[MetricSpec, MetricChange]]:
    """The change of every metric of the concept but the drift."""
    records = {(one.suite, one.metric): one for one in evaluation.metrics}
    for spec in concept.metrics:
        key = (spec.suite, spec.metric)
        record, before = records.get(key), evaluation.base_values.get(key)
        if record is None or record.after is None or before is None or _is_drift(spec):
            continue
        yield spec, _change(record, before, evaluation.values[key])


def _change(record: Record, before: ExampleValues, after: ExampleValues) -> MetricChange:
    assert record.after is not None
    score = record.after
    change = MetricChange(
        record.metric,
        record.unit,
        record.better,
        record.before.value,
        score.value,
        score.n,
        paired_p(before, after),
    )
    return MetricChange(**{**vars(change), "harmful": _is_harmful(change, record)})


def _is_harmful(change: MetricChange, record: Record) -> bool:
    """Whether a metric of retain data became so much worse that the edit is no success.

    With few examples no test is significant: then the interval of the new value decides.
    """
    assert record.after is not None
    if not change.worse or change.better == "none":
        return False
    if change.better == "lower":
        certain = record.after.low > max(MAX_SIDE_EFFECT, change.before)
        return certain or (change.significant and change.after > MAX_SIDE_EFFECT)
    certain = record.after.high < change.before - MAX_SIDE_EFFECT
    return certain or (change.significant and change.before - change.after > MAX_SIDE_EFFECT)


def _is_side(spec: MetricSpec, concept: Concept, direction: Direction) -> bool:
    """Whether a metric must not become worse.

    `better` is meant for a raised concept. A lowering edit changes what is not retained, too.
    """
    if spec.better == "none":
        return False
    retained = set(spec.labels) <= set(concept.directions[direction].retain)
    return direction == "raise" or retained or spec.scorer == DEGENERATE


def _is_drift(spec: MetricSpec) -> bool:
    try:
        return "base_responses" in get_scorer(spec.scorer).needs
    except ConfigError:
        return False


def _drift(evaluation: Evaluation, concept: Concept) -> float | None:
    """The first metric of the drift that was measured."""
    names = {(one.suite, one.metric) for one in concept.metrics if _is_drift(one)}
    found = (one.after for one in evaluation.metrics if (one.suite, one.metric) in names)
    return next((score.value for score in found if score is not None), None)


def _fewer_refused(
    worse: Sequence[MetricChange],
    specs: dict[str, MetricSpec],
    concept: Concept,
    direction: Direction,
) -> bool:
    """Whether a hardening edit made the model answer requests that it is to refuse."""
    hardening = concept.weakens is not None and concept.weakens != direction
    return hardening and any(
        specs[change.metric].scorer in REFUSALS and change.better == "higher" for change in worse
    )


def _main_side(
    others: Sequence[MetricChange], specs: dict[str, MetricSpec]
) -> Sequence[MetricChange]:
    """The side that is named where none became worse: refusals of retain data, or the first."""
    refusals = [
        one for one in others if specs[one.metric].scorer in REFUSALS and one.better == "lower"
    ]
    return (refusals or list(others))[:1]


def _sentence(
    status: Status,
    as_declared: AsDeclared,
    effect: MetricChange | None,
    others: Sequence[MetricChange],
    drift: float | None,
    max_drift: float,
) -> str:
    parts = []
    if effect is not None:
        verb = {"no": "did not change measurably:"}.get(
            as_declared, "rose" if effect.after > effect.before else "fell"
        )
        before, after = (show_value(v, effect.unit) for v in (effect.before, effect.after))
        wrong = ", the wrong way" if as_declared == "wrong way" else ""
        parts.append(
            f"{effect.metric} {verb} from {before} to {after}{wrong} (n {effect.n}, "
            f"{show_p(effect.p)})"
        )
    parts += [str(one) for one in others[:MAX_NAMED]]
    if len(others) > MAX_NAMED:
        parts.append(f"{len(others) - MAX_NAMED} more metrics worse")
    if drift is not None:
        limit = f", above the limit of {max_drift:g}" if drift > max_drift else ""
        parts.append(f"drift {show_value(drift, 'nats')} nats a token{limit}")
    label = {"failed": "FAILED: ", "side-effects": "SIDE EFFECTS: "}.get(status, "")
    return f"{label}{'; '.join(parts) or 'no metric applies'}."


def show_p(p: float) -> str:
    """A p-value as it is written: `p < 0.001`, `p = 0.031`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
