"""The search for settings: what is drawn, what is chosen, what survives a kill."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retouch.cli.app import app
from retouch.comparison.sampler import suggest
from retouch.comparison.search_space import find_search_space
from retouch.comparison.trial import Trial, choose, pareto_front
from retouch.comparison.tune import search
from retouch.core.errors import ConfigError, RefusedError, RunError
from retouch.methods.method import Settings, tunable
from helpers.fake_methods import PushSettings, model, put_methods, small_concept


def trial(number: int, effect: float, drift: float) -> Trial:
    return Trial(number, {}, effect, drift, 1.0)


def run(concept: str, out: Path, **more: Any) -> Any:
    options: dict[str, Any] = {"labels": 4, "trials": 4, "limit": 4} | more
    return search(model(), concept, "raise", "steering", out=out, **options)


def test_the_rule_takes_the_lowest_drift_among_those_as_good_as_the_best() -> None:
    trials = [trial(0, 0.5, 0.0), trial(1, 1.0, 0.009), trial(2, 0.99, 0.004), trial(3, 1.0, 0.5)]
    assert choose(trials) is trials[2]
    assert choose(trials, guard=0.001) is trials[0]
    # Nothing that works stays within the guard: the best effect, whatever it drifts.
    far = [trial(0, 1.0, 0.5), trial(1, 0.995, 0.2), trial(2, 0.1, 0.001)]
    assert choose(far) is far[1]
    failed = Trial(0, {}, None, None, 1.0, "failed", "no")
    assert choose([failed]) is None
    assert choose([failed, trials[3]]) is trials[3]


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [trial(0, 0.5, 0.1), trial(1, 0.4, 0.2), trial(2, 0.9, 0.3), trial(3, 0.9, 0.4)]
    assert [one.number for one in pareto_front(trials)] == [0, 2]


def test_the_space_is_read_off_the_settings() -> None:
    push, layer, both = find_search_space(PushSettings).dimensions
    assert (push.low, push.high, push.log, push.whole) == (0.01, 3.0, True, False)
    assert (layer.low, layer.high, layer.whole, layer.choices) == (0, 3, True, ())
    assert both.choices == (False, True)
    assert push.rounded(0.123456) == 0.123


def test_a_space_of_choices_is_walked_through_once() -> None:
    class Chosen(Settings):
        blocks: tuple[int, ...] = tunable((1,), choices=((1,), (1, 2)), description="which")
        warm: bool = tunable(True, description="or cold")
        fixed: int = 3

    space, trials = find_search_space(Chosen), []
    while (values := suggest(space, trials, 0)) is not None:
        Chosen(**values)
        trials.append(Trial(len(trials), values, 0.5, 0.1, 1.0))
    assert trials[0].settings == {"blocks": [1], "warm": True}
    assert len(trials) == 4
    assert (
        suggest(find_search_space(Settings), [], 0) == {}
    )  # nothing to tune: the defaults, and the end
    assert suggest(find_search_space(Settings), [Trial(0, {}, 0.5, 0.1, 1.0)], 0) is None


def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, concept = put_methods(monkeypatch), small_concept(tmp_path / "pack")
    whole = run(concept, tmp_path / "whole")
    assert whole.trials[0].settings == {"push": 0.1, "layer": 1, "both": False}
    assert len({json.dumps(dict(one.settings)) for one in whole.trials}) == 4
    push.applied.clear()

    def kill(settings: Any, task: Any) -> bool:
        if len(push.applied) > 2:
            raise KeyboardInterrupt
        return False

    push.fails = kill
    with pytest.raises(KeyboardInterrupt):
        run(concept, tmp_path / "cut")
    push.applied.clear()
    push.fails = lambda settings, task: False
    again = run(concept, tmp_path / "cut")
    assert len(push.applied) == 2  # the third, which was cut off, and the fourth

    def plain(trials: list[Trial]) -> Any:
        return [(one.settings, one.effect, one.drift, one.state) for one in trials]

    assert plain(again.trials) == plain(whole.trials)
    assert all(0 <= one.effect <= 1 and one.drift > 0 for one in again.trials)
    # What is done costs nothing, and a larger budget goes on.
    push.applied.clear()
    run(concept, tmp_path / "cut")
    assert not push.applied
    assert len(run(concept, tmp_path / "cut", trials=5).trials) == 5
    with pytest.raises(RunError, match=r"labels.*--out"):
        run(concept, tmp_path / "cut", labels=5)


def test_failed_trials_are_noted_and_do_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = put_methods(monkeypatch, lambda settings, task: settings.push == 0.1)
    found = run(small_concept(tmp_path / "pack"), tmp_path / "out", trials=3)
    assert [one.state for one in found.trials] == ["failed", "complete", "complete"]
    assert len(push.applied) == 3
    values = json.loads((tmp_path / "out" / "search.json").read_text())
    assert "fell apart" in values["trials"][0]["reason"]
    assert set(values) >= {"method", "concept", "direction", "labels", "seed", "budget", "chosen"}
    assert values["chosen"]["settings"] == dict(found.chosen.settings)


def test_minutes_end_the_search_whatever_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_methods(monkeypatch)
    found = run(small_concept(tmp_path / "pack"), tmp_path / "out", minutes=1e-9)
    assert len(found.trials) == 1


def test_what_is_kept_is_read_back_with_its_budget(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    tuned.keep(file, "retouch", {"rank": 8}, "4 trials")
    tuned.keep(file, "steering", {"push": 0.5, "at": [1, 2]}, "40 trials")
    tuned.keep(file, "retouch", {"rank": 4}, "9 trials")
    values, where = tuned.find_tuned("safety", "raise", file)
    assert values == {"retouch": {"rank": 4}, "steering": {"push": 0.5, "at": [1, 2]}}
    assert where == str(file)
    text = file.read_text()
    assert "# retouch: 9 trials\n" in text
    assert "# steering: 40 trials\n" in text
    file.write_text("absent: {}")
    with pytest.raises(ConfigError, match="absent"):
        tuned.find_tuned("safety", "raise", file)


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = small_concept(tmp_path / "pack")
    for option, more in (
        ("--trials", {"trials": 0}),
        ("--minutes", {"minutes": 0}),
        ("--guard", {"guard": 0}),
        ("labels", {"labels": 1}),
    ):
        with pytest.raises(ConfigError, match=option):
            run(concept, tmp_path / "out", **more)
    with pytest.raises(RefusedError):
        search("pocket", "safety", "lower", "none", out=tmp_path / "out")
    result = CliRunner().invoke(app, ["search", "pocket", "--method", "absent"])
    assert result.exit_code == 2
    assert "absent" in result.stderr
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError(name="optuna")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"retouch\[compare\]"):
        run(concept, tmp_path / "out")
