from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.evaluation.statistics import (
    ExampleValues,
    bootstrap,
    each_once,
    holm,
    mcnemar,
    paired_bootstrap,
    wilson,
)


def values_of(
    *values: float, counts: Sequence[float] = (), groups: tuple[str, ...] = ()
) -> ExampleValues:
    return ExampleValues(tuple(values), tuple(counts or [1.0] * len(values)), groups)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # By hand from Wilson's formula; the first is the textbook case of 0 out of 10.
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_agrees_with_values_by_hand(successes: int, n: int, low: float, high: float) -> None:
    score = wilson(successes, n)
    assert (score.value, score.n) == (successes / n, n)
    assert score.low == pytest.approx(low, abs=1e-4)
    assert score.high == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_its_value_and_is_symmetric(counted: tuple[int, int]) -> None:
    successes, n = counted
    score, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert score.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_wilson_covers_the_true_rate_95_times_out_of_100() -> None:
    # For a single rate the coverage varies with the possible counts; over many rates it is right.
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.05, 0.95, size=2000)
    scores = [wilson(int(rng.binomial(40, truth)), 40) for truth in truths]
    covered = [s.low <= truth <= s.high for s, truth in zip(scores, truths, strict=True)]
    assert 0.94 < np.mean(covered) < 0.96


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50))
def test_a_bootstrapped_mean_is_within_the_range_of_the_data(values: list[float]) -> None:
    score = bootstrap(each_once(values), draws=200)
    assert score.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= score.low <= score.high <= max(values) + 1e-9


def test_a_bootstrapped_mean_is_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    score = bootstrap(each_once(values.tolist()))
    half = 1.96 * values.std() / 20
    assert score.low == pytest.approx(values.mean() - half, abs=0.03)
    assert score.high == pytest.approx(values.mean() + half, abs=0.03)
    assert score == bootstrap(each_once(values.tolist()))
    assert score != bootstrap(each_once(values.tolist()), seed=1)


def test_bootstrap_in_blocks_is_the_same_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    values = each_once(range(50))
    whole = bootstrap(values)
    monkeypatch.setattr("retouch.evaluation.statistics._BLOCK", 120)
    blocks = bootstrap(values)
    assert blocks == whole


def test_a_bootstrapped_ratio_weights_texts_by_their_tokens() -> None:
    # 1 nat over 1 token and 0 nats over 99: a hundredth of a nat a token, not half.
    score = bootstrap(values_of(1.0, 0.0, counts=[1, 99]))
    assert score.value == 0.01
    assert score.n == 2


def gap_of(a: Sequence[float], b: Sequence[float]) -> ExampleValues:
    return values_of(*a, *b, groups=(*["a"] * len(a), *["b"] * len(b)))


def test_a_bootstrapped_gap_does_not_depend_on_the_order_of_the_groups() -> None:
    a, b = [0.9, 0.8, 1.0, 0.9], [0.1, 0.2, 0.0]
    forward, backward = bootstrap(gap_of(a, b)), bootstrap(gap_of(b, a))
    assert forward.value == pytest.approx(0.8) == backward.value
    assert forward.low > 0.6
    assert forward.n == 7
    assert bootstrap(gap_of(a, a)).value == 0


@pytest.mark.parametrize("score", [lambda: wilson(0, 0), lambda: bootstrap(values_of())])
def test_a_score_needs_a_sample(score: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        score()


@pytest.mark.parametrize("values", [gap_of([], [1.0]), gap_of([1.0], [])])
def test_a_gap_needs_two_groups(values: ExampleValues) -> None:
    with pytest.raises(ValueError, match="two groups, got 1"):
        bootstrap(values)


def test_impossible_counts_are_errors() -> None:
    with pytest.raises(ValueError, match="between 0 and 2, got 3"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="more than 0"):
        bootstrap(values_of(0.0, counts=[0]))


def test_holm_agrees_with_values_by_hand() -> None:
    # 0.01 x 4, then 0.02 x 3 = 0.06, then 0.03 x 2 = 0.06, then 0.04, which may not fall below.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_paired_bootstrap_of_two_examples_agrees_with_values_by_hand() -> None:
    # Differences 1 and -1: draws are 1, 0, 0, -1, so that three quarters are on either side of 0.
    difference, p = paired_bootstrap([values_of(1, 0)], [values_of(0, 1)])
    assert (difference.value, difference.low, difference.high) == (0, -1, 1)
    assert p == 1
    # Differences 3 and -1: a quarter of the draws is below 0, and none is 0.
    difference, p = paired_bootstrap([values_of(3, 0)], [values_of(0, 1)])
    assert difference.value == 1
    assert p == pytest.approx(0.5, abs=0.02)


def test_a_paired_bootstrap_resamples_seeds_too() -> None:
    # Within a seed all examples agree: +3 with one seed, -1 with the other, as with two examples.
    ours, theirs = (
        [values_of(*[3.0] * 40), values_of(*[0.0] * 40)],
        [values_of(*[0.0] * 40), values_of(*[1.0] * 40)],
    )
    difference, p = paired_bootstrap(ours, theirs)
    assert difference.value == 1
    assert p == pytest.approx(0.5, abs=0.02)
    assert paired_bootstrap(ours[:1], theirs[:1])[1] == pytest.approx(2 / 10_001)


def test_a_paired_bootstrap_of_pairs_ratios_and_gaps() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 200)
    ours, theirs = values_of(*(base + 0.5 + rng.normal(0, 1, 200))), values_of(*base)
    difference, p = paired_bootstrap([ours], [theirs])
    assert p < 0.001  # unpaired, 0.5 would not be significant beside a deviation of 10
    assert difference.low == pytest.approx(0.5 - 1.96 / 200**0.5, abs=0.1)
    backward, same = paired_bootstrap([theirs], [ours])
    assert backward.value == -difference.value
    assert same == pytest.approx(p, abs=0.001)
    # Weighted by tokens: 1 nat over 100 tokens against 0.
    counts = [1.0, 99.0]
    ratio, _ = paired_bootstrap([values_of(1, 0, counts=counts)], [values_of(0, 0, counts=counts)])
    assert ratio.value == pytest.approx(0.01)
    # Both examples change by 0.5, and the gap does not.
    groups = ("f", "m")
    gap, p = paired_bootstrap(
        [values_of(0.9, 0.7, groups=groups)], [values_of(0.4, 0.2, groups=groups)]
    )
    assert gap.value == pytest.approx(0)
    wide, p = paired_bootstrap(
        [values_of(0.9, 0.1, groups=groups)], [values_of(0.1, 0.2, groups=groups)]
    )
    assert wide.value == pytest.approx(0.7)
    assert p == pytest.approx(2 / 10_001)  # one example per group: every draw is the same


@given(st.integers(0, 1000))
def test_a_paired_bootstrap_of_equal_values_finds_no_difference(seed: int) -> None:
    values = np.random.default_rng(seed).random(9)
    assert paired_bootstrap([values_of(*values)], [values_of(*values)], draws=200)[1] == 1


def test_a_paired_bootstrap_in_blocks_has_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retouch.evaluation.statistics._BLOCK", 100)
    difference, p = paired_bootstrap([values_of(3, 0)], [values_of(0, 1)])
    assert difference.value == 1
    assert p == pytest.approx(0.5, abs=0.02)


def test_only_the_same_seeds_and_examples_can_be_paired() -> None:
    for a, b in (
        ([values_of(1, 0)], [values_of(1)]),
        ([values_of(1)], [values_of(1), values_of(1)]),
    ):
        with pytest.raises(ValueError, match="same seeds and the same examples"):
            paired_bootstrap(a, b)
    with pytest.raises(ValueError, match="at least one sample"):
        paired_bootstrap([], [])


def test_mcnemar_is_the_binomial_test_of_the_examples_that_changed() -> None:
    def p(rose: int, fell: int, same: int = 5) -> float:
        before = [0.0] * rose + [1.0] * fell + [1.0] * same
        return mcnemar(before, [1.0] * rose + [0.0] * fell + [1.0] * same)

    for rose, fell in ((0, 0), (3, 3), (6, 0), (5, 1), (1, 9), (40, 12), (2000, 0)):
        expected = binomial_p(rose, fell)
        assert p(rose, fell) == pytest.approx(expected)
        assert p(rose, fell) == p(fell, rose) == p(rose, fell, same=50)
    assert p(6, 0) == pytest.approx(2 / 64)
    # Other values count by the sign of their change.
    assert mcnemar([0.1, 0.4, 0.3], [0.2, 0.5, 0.9]) == pytest.approx(2 / 8)
    with pytest.raises(ValueError, match="at least one"):
        mcnemar([], [])


def binomial_p(rose: int, fell: int) -> float:
    """The two-sided exact binomial p, by counting in exact fractions."""
    n = rose + fell
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(rose, fell) + 1))
    return float(min(Fraction(1), 2 * tail))
