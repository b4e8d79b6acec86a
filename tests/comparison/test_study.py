"""Trials: which one is selected, and which are on the Pareto front."""

from __future__ import annotations

from pathlib import Path

from retouch.comparison.study import Study, Trial, select_trial

FAILED = Trial(0, {}, None, None, 1.0, "failed", "The loss is not finite.")


def trial(number: int, effect: float, drift: float) -> Trial:
    return Trial(number, {}, effect, drift, 1.0)


def test_the_lowest_drift_among_the_best_effects_is_selected() -> None:
    trials = [trial(0, 0.5, 0.0), trial(1, 1.0, 0.009), trial(2, 0.99, 0.004), trial(3, 1.0, 0.5)]
    assert select_trial(trials) is trials[2]
    assert select_trial(trials, max_drift=0.001) is trials[0]


def test_without_an_effect_within_the_maximum_drift_all_trials_are_candidates() -> None:
    trials = [trial(0, 1.0, 0.5), trial(1, 0.995, 0.2), trial(2, 0.1, 0.001)]
    assert select_trial(trials) is trials[1]


def test_failed_trials_are_never_selected() -> None:
    completed = trial(1, 1.0, 0.5)
    assert select_trial([FAILED]) is None
    assert select_trial([FAILED, completed]) is completed


def test_the_pareto_front_has_the_trials_that_no_other_dominates(tmp_path: Path) -> None:
    trials = [trial(0, 0.5, 0.1), trial(1, 0.4, 0.2), trial(2, 0.9, 0.3), trial(3, 0.9, 0.4)]
    study = Study(tmp_path, {}, {}, 0.01, [*trials, FAILED])
    assert [one.number for one in study.pareto_front] == [0, 2]
