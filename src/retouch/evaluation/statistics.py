"""Scores with 95 % intervals: Wilson's for rates, a percentile bootstrap for everything else.

Two models that were measured on the same examples are compared by a paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retouch.core.types import Score

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


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = 2000) -> Score:
    """A mean with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: there is no value.
    """
    return bootstrap_ratio(values, [1.0] * len(values), seed, draws)


def bootstrap_ratio(
    sums: Sequence[float], counts: Sequence[float], seed: int = 0, draws: int = 2000
) -> Score:
    """Σ sums / Σ counts with its interval, resampled by example: a mean over all tokens of texts.

    Raises:
        ValueError: there is no example, or the counts add up to 0.
    """
    _check_not_empty(len(sums))
    numerators, denominators = _floats(sums), _floats(counts)
    if denominators.sum() <= 0:
        raise ValueError("`counts` must add up to more than 0.")

    sampled = _ratios(numerators, denominators, np.random.default_rng(seed), draws)
    return _interval(float(numerators.sum() / denominators.sum()), sampled, len(numerators))


def bootstrap_gap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = 2000
) -> Score:
    """|mean(a) - mean(b)| with its 95 % interval; each group is resampled by itself.

    Raises:
        ValueError: a group is empty.
    """
    _check_not_empty(len(a))
    _check_not_empty(len(b))
    first, second = _floats(a), _floats(b)
    rng = np.random.default_rng(seed)
    means = [_ratios(group, np.ones(len(group)), rng, draws) for group in (first, second)]
    value = abs(float(first.mean() - second.mean()))
    return _interval(value, np.abs(means[0] - means[1]), len(first) + len(second))


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
    rng = np.random.default_rng(seed)
    n, seeds, sampled = len(a[0].sums), len(a), []
    uniform = np.ones((1, n))
    value = float((_metric(a, uniform) - _metric(b, uniform)).mean())
    for weights in _example_weights(a[0], rng, draws):
        gaps = _metric(a, weights) - _metric(b, weights)
        shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights)) / seeds
        sampled.append((gaps * shares).sum(axis=1))
    differences = np.concatenate(sampled)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return _interval(value, differences, n), min(1.0, 2 * (tail + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for multiple comparisons after Holm (1979), in the order given."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _metric(seeds: Sequence[ExampleValues], weights: Floats) -> Floats:
    """The metric of each seed with weighted examples: `[draws, examples]` to `[draws, seeds]`."""
    sums = _floats([values.sums for values in seeds])
    counts = _floats([values.counts for values in seeds])

    def mean(weights: Floats) -> Floats:
        below = weights @ counts.T
        ratio: Floats = (weights @ sums.T) / np.where(below > 0, below, np.inf)
        return ratio

    if not seeds[0].groups:
        return mean(weights)
    first, second = _group_masks(seeds[0])
    gap: Floats = np.abs(mean(weights * first) - mean(weights * second))
    return gap


def _example_weights(
    values: ExampleValues, rng: np.random.Generator, draws: int
) -> Iterator[Floats]:
    """How often each example is sampled, `[draws of this block, examples]`."""
    n = len(values.sums)
    strata = _group_masks(values) if values.groups else [np.ones(n)]
    block = max(1, _BLOCK // n)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        counts = [rng.multinomial(int(one.sum()), one / one.sum(), size=size) for one in strata]
        yield np.sum(counts, axis=0, dtype=np.float64)


def _group_masks(values: ExampleValues) -> list[Floats]:
    """For each of the two groups 1 where an example belongs to it, else 0."""
    names = sorted(set(values.groups))
    if len(names) != 2:
        raise ValueError(f"`groups` must name two groups, got {len(names)}.")
    return [_floats([float(group == name) for group in values.groups]) for name in names]


def _check_not_empty(n: int) -> None:
    if n == 0:
        raise ValueError("A score needs at least one sample, got 0.")


def _floats(values: Sequence[float] | Sequence[Sequence[float]]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _ratios(
    numerators: Floats, denominators: Floats, rng: np.random.Generator, draws: int
) -> Floats:
    """Σ numerators / Σ denominators of each draw; 0 where the denominators add up to 0."""
    ratios: list[Floats] = []
    for index in _indices(len(numerators), rng, draws):
        below = denominators[index].sum(axis=1)
        ratios.append(numerators[index].sum(axis=1) / np.where(below > 0, below, np.inf))
    return np.concatenate(ratios)


def _indices(n: int, rng: np.random.Generator, draws: int) -> Iterator[NDArray[np.int64]]:
    """Indices of examples sampled with replacement, `[draws of this block, n]`."""
    block = max(1, _BLOCK // n)
    for start in range(0, draws, block):
        yield rng.integers(0, n, size=(min(block, draws - start), n))


def _interval(value: float, sampled: Floats, n: int) -> Score:
    low, high = np.percentile(sampled, [2.5, 97.5])
    return Score(value, float(low), float(high), n)
