"""Scores with 95 % intervals: Wilson's for rates, a percentile bootstrap for everything else.

Two models that were measured on the same examples are compared by a paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retouch.core.types import Better, Score

Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side

# Indices sampled at a time, so that a large sample does not fill the memory.
_BLOCK = 1_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExampleValues:
    """The values that a metric is computed from, one for each example: Σ sums / Σ counts.

    Attributes:
        sums: the numerators: 0 or 1 for a rate, a probability for a gap, nats for a divergence.
        counts: the denominators: 1, or the number of tokens for a divergence.
        groups: the group of each example where the metric is a gap, two different ones in all; the
            metric is then the distance between the groups' means. Empty for any other metric.
    """

    sums: tuple[float, ...]
    counts: tuple[float, ...]
    groups: tuple[str, ...] = ()


def each_once(values: Sequence[float], groups: tuple[str, ...] = ()) -> ExampleValues:
    """Values with a count of 1 each."""
    return ExampleValues(tuple(map(float, values)), (1.0,) * len(values), groups)


@dataclass(frozen=True)
class Curve:
    """One metric of a model as a function of the variable `along`: of `steps` or `strength`."""

    suite: str
    metric: str
    unit: str
    better: Better
    along: str
    points: tuple[tuple[float, Score], ...]  # in ascending order of the variable


def wilson(successes: int, n: int) -> Score:
    """A rate with its 95 % interval after Wilson (1927), which is accurate near 0 and 1 too.

    Raises:
        ValueError: there is no sample, or there are more successes than samples.
    """
    _check_not_empty(n)
    if not 0 <= successes <= n:
        raise ValueError(f"`successes` must be between 0 and {n}, got {successes}.")
    rate, shrink = successes / n, 1 + Z**2 / n
    centre = (rate + Z**2 / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the bound is the rate itself; rounding must not put it on the wrong side.
    return Score(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), n)


def classified_rate(values: ExampleValues) -> Score:
    """A rate over the examples with a count of 1, with Wilson's interval.

    Without any, nothing is known: the interval is 0 to 1, and `n` is 0.
    """
    n = int(sum(values.counts))
    hits = sum(s for s, count in zip(values.sums, values.counts, strict=True) if count)
    return wilson(int(hits), n) if n else Score(0.0, 0.0, 1.0, 0)


def bootstrap(values: ExampleValues, seed: int = 0, draws: int = 2000) -> Score:
    """A metric with its 95 % percentile bootstrap interval, resampled by example.

    The examples of a gap are resampled within their group.

    Raises:
        ValueError: there is no example, the counts add up to 0, or `groups` does not name two.
    """
    _check_not_empty(len(values.sums))
    rng, ratios, sampled = np.random.default_rng(seed), [], []
    for mask in _group_masks(values, list(dict.fromkeys(values.groups))):
        sums, counts = np.array(values.sums)[mask], np.array(values.counts)[mask]
        if counts.sum() <= 0:
            raise ValueError("`counts` must add up to more than 0.")
        blocks = []
        for size in _block_sizes(len(sums), draws):
            index = rng.integers(0, len(sums), size=(size, len(sums)))
            blocks.append(_ratio(sums[index].sum(axis=1), counts[index].sum(axis=1)))
        ratios.append(sums.sum() / counts.sum())
        sampled.append(np.concatenate(blocks))
    return _interval(float(_gap(ratios)), _gap(sampled), len(values.sums))


def paired_bootstrap(
    a: Sequence[ExampleValues], b: Sequence[ExampleValues], seed: int = 0, draws: int = 10_000
) -> tuple[Score, float]:
    """How much higher a metric is for model a than for b, and the two-sided p of no difference.

    Both models were trained with the same seeds and measured on the same examples: `a[s]` and
    `b[s]` belong to one seed. Seeds and examples are both resampled with replacement (the examples
    of a gap within their group), identically for a and b. So p accounts for other prompts and for
    other seeds; with a single seed it accounts for prompts alone. It is twice the share of draws on
    the smaller side of 0 and never below 2 / (draws + 1).

    Raises:
        ValueError: there is no seed or no example, or a and b differ in seeds or examples.
    """
    _check_not_empty(len(a))
    shapes = {(len(values.sums), len(values.counts), values.groups) for values in (*a, *b)}
    if len(a) != len(b) or len(shapes) > 1:
        raise ValueError("`a` and `b` must be of the same seeds and the same examples.")
    _check_not_empty(len(a[0].sums))
    n, seeds, rng = len(a[0].sums), len(a), np.random.default_rng(seed)
    masks, sampled = _group_masks(a[0], sorted(set(a[0].groups))), []

    def difference(weights: Floats) -> Floats:
        """The difference of each seed with weighted examples: `[draws, n]` to `[draws, seeds]`."""
        return _weighted_metric(a, masks, weights) - _weighted_metric(b, masks, weights)

    for size in _block_sizes(n, draws):
        # How often each example and each seed is sampled.
        counts = [rng.multinomial(int(one.sum()), one / one.sum(), size=size) for one in masks]
        shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        weights = np.asarray(np.sum(counts, axis=0), dtype=np.float64)
        sampled.append((difference(weights) * shares).sum(axis=1))
    differences = np.concatenate(sampled)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    value = float(difference(np.ones((1, n))).mean())
    return _interval(value, differences, n), min(1.0, 2 * (tail + 1) / (draws + 1))


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """The two-sided p of no change of paired values, after McNemar, exact.

    Of the examples that changed, as many rise as fall if nothing but chance is at work. For values
    other than 0 and 1 it is the sign test.

    Raises:
        ValueError: there is no example, or there are not as many values before as after.
    """
    _check_not_empty(len(before))
    pairs = list(zip(before, after, strict=True))
    rose, fell = sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
    changed = rose + fell
    tail = sum(math.comb(changed, k) for k in range(min(rose, fell) + 1))
    # Integers, since 2**changed exceeds a float from 1024 changes on.
    return min(1.0, 2 * tail / (1 << changed))


def paired_p(before: ExampleValues, after: ExampleValues, seed: int = 0) -> float:
    """The two-sided p of no change of a metric, of values of the same examples.

    McNemar's exact test where the values are 0 and 1, else a paired bootstrap over the examples.

    Raises:
        ValueError: there is no example, or they differ.
    """
    if not sum(before.counts) or not sum(after.counts):
        return 1.0  # nothing is known of one of the models
    binary = {*before.sums, *after.sums} <= {0.0, 1.0} and not before.groups
    if binary and {*before.counts, *after.counts} == {1.0}:
        return mcnemar(before.sums, after.sums)
    return paired_bootstrap([after], [before], seed)[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for multiple comparisons after Holm (1979), in the order given."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _weighted_metric(
    seeds: Sequence[ExampleValues], masks: Sequence[NDArray[np.bool_]], weights: Floats
) -> Floats:
    sums = np.array([values.sums for values in seeds], dtype=np.float64)
    counts = np.array([values.counts for values in seeds], dtype=np.float64)
    chosen = [weights * mask for mask in masks]
    return _gap([_ratio(one @ sums.T, one @ counts.T) for one in chosen])


def _gap(means: Sequence[Floats]) -> Floats:
    """The distance between two groups' means; the mean itself where there is one group."""
    return means[0] if len(means) == 1 else np.abs(means[0] - means[1])


def _ratio(sums: Floats, counts: Floats) -> Floats:
    """Sums over counts; 0 where the counts are 0."""
    ratio: Floats = sums / np.where(counts > 0, counts, np.inf)
    return ratio


def _group_masks(values: ExampleValues, names: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Which examples belong to each of the two groups; all of them where there are no groups."""
    if not values.groups:
        return [np.ones(len(values.sums), dtype=np.bool_)]
    if len(names) != 2:
        raise ValueError(f"`groups` must name two groups, got {len(names)}.")
    return [np.array(values.groups) == name for name in names]


def _block_sizes(n: int, draws: int) -> Iterator[int]:
    """How many draws of `n` examples are sampled at a time."""
    block = max(1, _BLOCK // n)
    for start in range(0, draws, block):
        yield min(block, draws - start)


def _check_not_empty(n: int) -> None:
    if n == 0:
        raise ValueError("A score needs at least one sample, got 0.")


def _interval(value: float, sampled: Floats, n: int) -> Score:
    low, high = np.percentile(sampled, [2.5, 97.5])
    return Score(value, float(low), float(high), n)
