import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.evaluation.statistics import bootstrap_gap, bootstrap_mean, bootstrap_ratio, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # By hand from Wilson's formula; the first is his textbook case of nothing out of ten.
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_agrees_with_the_books(successes, n, low, high):
    score = wilson(successes, n)
    assert (score.value, score.n) == (successes / n, n)
    assert score.low == pytest.approx(low, abs=1e-4)
    assert score.high == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_mirrors(counted):
    successes, n = counted
    score, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert score.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    # For one rate it swings with the few counts there are; over many rates it is right.
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.05, 0.95, size=2000)
    scores = [wilson(int(rng.binomial(40, truth)), 40) for truth in truths]
    held = [s.low <= truth <= s.high for s, truth in zip(scores, truths, strict=True)]
    assert 0.94 < np.mean(held) < 0.96


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50))
def test_bootstrap_mean_lies_within_the_data(values):
    score = bootstrap_mean(values, draws=200)
    assert score.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= score.low <= score.high <= max(values) + 1e-9


def test_bootstrap_mean_is_as_wide_as_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    score = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert score.low == pytest.approx(values.mean() - half, abs=0.03)
    assert score.high == pytest.approx(values.mean() + half, abs=0.03)
    assert score == bootstrap_mean(values.tolist())
    assert score != bootstrap_mean(values.tolist(), seed=1)


def test_bootstrap_in_blocks_is_the_same_bootstrap(monkeypatch):
    values = list(range(50))
    whole = bootstrap_mean(values)
    monkeypatch.setattr("retouch.evaluation.statistics._BLOCK", 120)
    blocks = bootstrap_mean(values)
    assert blocks == whole


def test_bootstrap_ratio_weighs_rows_by_their_tokens():
    # 1 nat over 1 token and 0 nats over 99: a hundredth of a nat a token, not half.
    score = bootstrap_ratio([1.0, 0.0], [1, 99])
    assert score.value == 0.01
    assert score.n == 2


def test_bootstrap_gap_knows_no_direction():
    a, b = [0.9, 0.8, 1.0, 0.9], [0.1, 0.2, 0.0]
    there, back = bootstrap_gap(a, b), bootstrap_gap(b, a)
    assert there.value == pytest.approx(0.8) == back.value
    assert there.low > 0.6
    assert there.n == 7
    assert bootstrap_gap(a, a).value == 0


@pytest.mark.parametrize(
    "score",
    [
        lambda: wilson(0, 0),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_gap([], [1.0]),
        lambda: bootstrap_gap([1.0], []),
        lambda: bootstrap_ratio([], []),
    ],
)
def test_no_score_without_a_sample(score):
    with pytest.raises(ValueError, match="at least one sample"):
        score()


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="cannot be"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_ratio([0.0], [0])
