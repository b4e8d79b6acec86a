"""Summarise results: statistics over the seeds, and paired tests of Retouch against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from retouch.comparison.result import Result
from retouch.core.types import Better, Score
from retouch.evaluation.statistics import holm, paired_bootstrap

REFERENCE = "retouch"  # the method that the others are tested against
UNEDITED = "none"  # the base model: it cannot drift, so it is never marked as the best


@dataclass(frozen=True)
class SeedStats:
    """Mean, minimum and maximum of a metric over the seeds."""

    mean: float
    low: float
    high: float

    def worst(self, better: Better) -> float:
        """The value of the worst seed."""
        return self.high if better == "lower" else self.low


@dataclass(frozen=True)
class SummaryRow:
    """A method at a number of examples.

    Attributes:
        metrics: over the completed seeds, by `suite/metric`; empty if there are none.
        seconds: mean time of the method; None if no seed completed.
        failures: the error of each failed seed.
    """

    method: str
    num_examples: int
    metrics: Mapping[str, SeedStats]
    seconds: float | None
    failures: Mapping[int, str]


@dataclass(frozen=True)
class PairedTest:
    """Retouch against another method, on the same examples with the same seeds.

    Attributes:
        method: the id of the other method.
        metric: as `suite/metric`.
        seeds: the number of seeds that both methods completed.
        difference: Retouch's value minus the other's.
        p: two-sided p-value of no difference.
        p_holm: adjusted by Holm's method for all methods tested on the metric.
    """

    method: str
    num_examples: int
    metric: str
    seeds: int
    difference: Score
    p: float
    p_holm: float


def summarize(results: Sequence[Result]) -> list[SummaryRow]:
    """One row for each method and number of examples, in the order of the results."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.point.method, result.point.num_examples), []).append(result)
    rows = []
    for (method, num_examples), group in groups.items():
        done = [result for result in group if result.state == "done"]
        scores = [result.scores() for result in done]
        metrics = {}
        for key in scores[0] if scores else ():
            values = [one[key].value for one in scores]
            metrics[key] = SeedStats(fmean(values), min(values), max(values))
        seconds = fmean(result.seconds for result in done) if done else None
        failures = {one.point.seed: one.reason for one in group if one.state == "failed"}
        rows.append(SummaryRow(method, num_examples, metrics, seconds, failures))
    return rows


def paired_tests(results: Sequence[Result]) -> list[PairedTest]:
    """Test Retouch against every other method at each number of examples.

    The metrics are those whose values the results have: effect, drift, and those of suites.
    """
    tests = []
    for num_examples in dict.fromkeys(one.point.num_examples for one in results):
        done: dict[str, dict[int, Result]] = {}  # by method and seed
        for result in results:
            if result.point.num_examples == num_examples and result.state == "done":
                done.setdefault(result.point.method, {})[result.point.seed] = result
        reference = done.pop(REFERENCE, {})
        keys = dict.fromkeys(key for one in reference.values() for key in one.values)
        for key in keys:
            found = []
            for method, other in done.items():
                seeds = [seed for seed in reference if seed in other and key in other[seed].values]
                if seeds:
                    values = [reference[seed].values[key] for seed in seeds]
                    other_values = [other[seed].values[key] for seed in seeds]
                    found.append((method, len(seeds), *paired_bootstrap(values, other_values)))
            adjusted = holm([p for *_, p in found])
            tests += [
                PairedTest(method, num_examples, key, seeds_done, difference, p, p_holm)
                for (method, seeds_done, difference, p), p_holm in zip(found, adjusted, strict=True)
            ]
    return tests
