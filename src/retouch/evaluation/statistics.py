"""Values with their 95 % intervals: Wilson's for rates, a percentile bootstrap for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retouch.core.types import Score

Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side

# Indices drawn at a time, so that a large sample does not fill the memory.
_BLOCK = 1_000_000

Floats = NDArray[np.float64]


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


def _some(n: int) -> None:
    if n == 0:
        raise ValueError("A score needs at least one sample, and there is none.")


def _floats(values: Sequence[float]) -> Floats:
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
