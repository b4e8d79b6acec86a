"""Values with their 95 % intervals: Wilson's for rates, a percentile bootstrap for the rest.

Two models that were measured on the same rows are compared row by row, by a paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retouch.core.types import Score

Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side

# Indices drawn at a time, so that a large sample does not fill the memory.
_BLOCK = 1_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """What a metric is made of, row by row: it is Σ sums / Σ counts.

    Attributes:
        sums: for a rate 0 or 1, for a gap the share, for a divergence the nats.
        counts: what they are divided by: 1, or for a divergence the tokens.
        groups: for a gap the group of each row, two in all; the metric is then the distance
            between the groups' means. Empty for any other metric.
    """

    sums: tuple[float, ...]
    counts: tuple[float, ...]
    groups: tuple[str, ...] = ()


def wilson(successes: int, n: int) -> Score:
    """A rate with its 95 % interval after Wilson (1927), which holds near 0 and 1 as well.

    Raises:
        ValueError: without a sample, or with more successes than samples.
    """
    _some(n)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} samples cannot be.")
    rate, shrink = successes / n, 1 + Z**2 / n
    centre = (rate + Z**2 / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the bound is the rate itself; rounding must not put it on the wrong side.
    return Score(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), n)


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = 2000) -> Score:
    """A mean with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: without a value.
    """
    return bootstrap_ratio(values, [1.0] * len(values), seed, draws)


def bootstrap_ratio(
    sums: Sequence[float], counts: Sequence[float], seed: int = 0, draws: int = 2000
) -> Score:
    """Σ sums / Σ counts, resampled by row: the mean over all tokens of rows of unlike length.

    Raises:
        ValueError: without a row, or where nothing was counted.
    """
    _some(len(sums))
    top, bottom = _floats(sums), _floats(counts)
    if bottom.sum() <= 0:
        raise ValueError("A mean over nothing: no row has anything to count.")

    drawn = _ratios(top, bottom, np.random.default_rng(seed), draws)
    return _interval(float(top.sum() / bottom.sum()), drawn, len(top))


def bootstrap_gap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = 2000
) -> Score:
    """|mean(a) - mean(b)| with its 95 % interval; each group is resampled by itself.

    Raises:
        ValueError: when a group is empty.
    """
    _some(len(a))
    _some(len(b))
    first, second = _floats(a), _floats(b)
    rng = np.random.default_rng(seed)
    means = [_ratios(group, np.ones(len(group)), rng, draws) for group in (first, second)]
    value = abs(float(first.mean() - second.mean()))
    return _interval(value, np.abs(means[0] - means[1]), len(first) + len(second))


def paired_bootstrap(
    a: Sequence[Rows], b: Sequence[Rows], seed: int = 0, draws: int = 10_000
) -> tuple[Score, float]:
    """How much higher a metric is for model a than for b, and the two-sided p of no difference.

    Each model was trained with the same seeds and measured on the same rows: `a[s]` and `b[s]` are
    of one seed. Seeds and rows are both drawn with replacement (the rows of a gap within their
    group), the same ones for a and b. So p says how far the difference would hold for other
    prompts and for other seeds; with one seed it says nothing of seeds. It is twice the share of
    draws on the smaller side of 0 and never below 2 / (draws + 1).

    Raises:
        ValueError: without a seed or a row, or where a and b are not of the same seeds and rows.
    """
    _some(len(a))
    shapes = {(len(rows.sums), len(rows.counts), rows.groups) for rows in (*a, *b)}
    if len(a) != len(b) or len(shapes) > 1:
        raise ValueError("Only what was measured with the same seeds on the same rows is paired.")
    _some(len(a[0].sums))
    rng = np.random.default_rng(seed)
    n, seeds, drawn = len(a[0].sums), len(a), []
    every = np.ones((1, n))
    value = float((_metric(a, every) - _metric(b, every)).mean())
    for weights in _row_weights(a[0], rng, draws):
        gaps = _metric(a, weights) - _metric(b, weights)
        shares = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights)) / seeds
        drawn.append((gaps * shares).sum(axis=1))
    differences = np.concatenate(drawn)
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return _interval(value, differences, n), min(1.0, 2 * (side + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted after Holm (1979) for being several, in the order given."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def _metric(seeds: Sequence[Rows], weights: Floats) -> Floats:
    """The metric of each seed with the rows weighted: `[draws, rows]` to `[draws, seeds]`."""
    sums, counts = (_floats([getattr(rows, name) for rows in seeds]) for name in ("sums", "counts"))

    def mean(of: Floats) -> Floats:
        below = of @ counts.T
        ratio: Floats = (of @ sums.T) / np.where(below > 0, below, np.inf)
        return ratio

    if not seeds[0].groups:
        return mean(weights)
    first, second = _by_group(seeds[0])
    gap: Floats = np.abs(mean(weights * first) - mean(weights * second))
    return gap


def _row_weights(rows: Rows, rng: np.random.Generator, draws: int) -> Iterator[Floats]:
    """How often each row is drawn, `[draws of this block, rows]`."""
    n = len(rows.sums)
    strata = _by_group(rows) if rows.groups else [np.ones(n)]
    at_once = max(1, _BLOCK // n)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = [rng.multinomial(int(one.sum()), one / one.sum(), size=size) for one in strata]
        yield np.sum(drawn, axis=0, dtype=np.float64)


def _by_group(rows: Rows) -> list[Floats]:
    """For each of the two groups 1 where a row belongs to it, else 0."""
    names = sorted(set(rows.groups))
    if len(names) != 2:
        raise ValueError(f"A gap is between two groups, not {len(names)}.")
    return [_floats([float(group == name) for group in rows.groups]) for name in names]


def _some(n: int) -> None:
    if n == 0:
        raise ValueError("A score needs at least one sample, and there is none.")


def _floats(values: Sequence[float] | Sequence[Sequence[float]]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _ratios(top: Floats, bottom: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Σ top / Σ bottom of each draw; one that took empty rows alone counts as 0."""
    ratios: list[Floats] = []
    for rows in _draws(len(top), rng, draws):
        below = bottom[rows].sum(axis=1)
        ratios.append(top[rows].sum(axis=1) / np.where(below > 0, below, np.inf))
    return np.concatenate(ratios)


def _draws(n: int, rng: np.random.Generator, draws: int) -> Iterator[NDArray[np.int64]]:
    """Row indices drawn with replacement, `[draws of this block, n]`."""
    at_once = max(1, _BLOCK // n)
    for start in range(0, draws, at_once):
        yield rng.integers(0, n, size=(min(at_once, draws - start), n))


def _interval(value: float, drawn: Floats, n: int) -> Score:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Score(value, float(low), float(high), n)
