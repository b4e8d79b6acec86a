"""Cells brought together: means over the seeds, and Retouch against each of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from retouch.comparison.objective import Objective
from retouch.comparison.result import Result
from retouch.core.types import Better, Score
from retouch.evaluation.statistics import holm, paired_bootstrap

OURS = "retouch"  # the method that the others are held against
BARE = "none"  # no edit: it drifts nowhere, and wins nothing by it


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds."""

    mean: float
    low: float
    high: float

    def worst(self, better: Better) -> float:
        """The value of the worst seed."""
        return self.high if better == "lower" else self.low


@dataclass(frozen=True)
class SummaryRow:
    """A method at a number of labels.

    Attributes:
        method: its id.
        labels: the number.
        metrics: over the seeds that came to their end, by `suite/metric`; empty if none did.
        seconds: that the method took, a mean; None if no seed came to its end.
        failed: why a seed failed, by seed.
    """

    method: str
    labels: int
    metrics: Mapping[str, Spread]
    seconds: float | None
    failed: Mapping[int, str]


@dataclass(frozen=True)
class PairedTest:
    """Retouch against another method, on the same rows with the same seeds.

    Attributes:
        method: the other one.
        labels: the number of labels.
        metric: as `suite/metric`.
        seeds: how many both have.
        difference: Retouch's value less the other's.
        p: two-sided, of no difference.
        p_holm: adjusted for all methods that Retouch is held against on the metric and the labels.
    """

    method: str
    labels: int
    metric: str
    seeds: int
    difference: Score
    p: float
    p_holm: float


def key(suite: str, metric: str) -> str:
    """A metric's name in the whole of a comparison."""
    return f"{suite}/{metric}"


def make_lines(results: Sequence[Result]) -> list[SummaryRow]:
    """One line for each method and number of labels, in the order of the results."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.point.labels, result.point.method), []).append(result)
    return [_line(method, labels, group) for (labels, method), group in groups.items()]


def make_paired_tests(objective: Objective, results: Sequence[Result]) -> list[PairedTest]:
    """Retouch against every other method, in effect and in drift, at every number of labels."""
    done = {
        (one.point.labels, one.point.method, one.point.seed): one
        for one in results
        if one.state == "done"
    }
    methods = list(dict.fromkeys(one.point.method for one in results if one.point.method != OURS))
    found = []
    for labels in dict.fromkeys(one.point.labels for one in results):
        for spec in (objective.effect, objective.drift):
            name, pairs = key(spec.suite, spec.metric), []
            for method in methods:
                seeds = [
                    seed
                    for (at, who, seed) in done
                    if (at, who) == (labels, OURS) and (labels, method, seed) in done
                ]
                if seeds:
                    ours, theirs = (
                        [done[labels, who, seed].rows[name] for seed in seeds]
                        for who in (OURS, method)
                    )
                    pairs.append((method, len(seeds), *paired_bootstrap(ours, theirs)))
            adjusted = holm([p for *_, p in pairs])
            found += [
                PairedTest(method, labels, name, seeds, difference, p, p_holm)
                for (method, seeds, difference, p), p_holm in zip(pairs, adjusted, strict=True)
            ]
    return found


def _line(method: str, labels: int, group: Sequence[Result]) -> SummaryRow:
    done = [result for result in group if result.state == "done"]
    scores = [result.scores() for result in done]
    metrics = {}
    for name in scores[0] if scores else ():
        values = [one[name].value for one in scores]
        metrics[name] = Spread(fmean(values), min(values), max(values))
    seconds = fmean(result.seconds for result in done) if done else None
    failed = {one.point.seed: one.reason for one in group if one.state == "failed"}
    return SummaryRow(method, labels, metrics, seconds, failed)
