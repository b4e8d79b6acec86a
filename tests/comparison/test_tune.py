"""`retouch tune`: the search space, trials on disk, their continuation, the budget, and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from helpers.fake_methods import ShiftSettings, model, small_concept, use_fake_methods
from retouch.comparison.study import Study, Trial
from retouch.comparison.tune import build_search_space, suggest, tune
from retouch.core.config import LoadConfig, MethodConfig, option
from retouch.core.errors import ConfigError, RefusedError, RunError
from retouch.core.lock import locked
from retouch.core.options import nest
from retouch.methods.method import MethodSettings


def run(concept: str, output_dir: Path, **overrides: Any) -> Study:
    options: dict[str, Any] = {"num_examples": 4, "trials": 4, "limit": 4} | overrides
    return tune(model(), concept, "raise", "steering", output_dir=output_dir, **options)


def without_time(trials: list[Trial]) -> Any:
    return [(one.settings, one.effect, one.drift, one.state) for one in trials]


def test_the_space_is_built_from_the_settings() -> None:
    scale, layer, last_layer = build_search_space(ShiftSettings)
    assert scale.distribution == FloatDistribution(0.01, 3.0, log=True)
    assert layer.distribution == IntDistribution(0, 3)
    assert (layer.choices, last_layer.choices) == ((), (False, True))
    assert scale.value(0.123456) == 0.123
    assert (layer.value(2), last_layer.value(1), last_layer.sample(True)) == (2, True, 1)


def test_nested_groups_are_searched_by_dotted_path() -> None:
    space = build_search_space(MethodConfig, {"loss.kl_weight": 60.0, "train.rounds": 3})
    assert suggest(space, [], 0) == {
        "train.learning_rate": 5e-4,
        "loss.adversarial_weight": 0.1,
        "loss.matching_weight": 0.3,
        "loss.kl_weight": 60.0,
    }
    trials: list[Trial] = []
    for _ in range(3):
        values = suggest(space, trials, 0)
        assert values is not None
        MethodConfig.model_validate(nest(values))
        trials.append(Trial(len(trials), values, 0.5, 0.1, 1.0))
    assert len({str(trial.settings) for trial in trials}) == 3


def test_a_categorical_space_is_tried_completely_and_once() -> None:
    class Categorical(MethodSettings):
        layers: tuple[int, ...] = option((1,), "layers", choices=((1,), (1, 2)))
        warmup: bool = option(True, "warm up", choices=(False, True))
        fixed: int = 3

    space, trials = build_search_space(Categorical), []
    while (values := suggest(space, trials, 0)) is not None:
        Categorical(**values)
        trials.append(Trial(len(trials), values, 0.5, 0.1, 1.0))
    assert trials[0].settings == {"layers": [1], "warmup": True}
    assert len({str(trial.settings) for trial in trials}) == len(trials) == 4


def test_settings_without_a_range_get_one_trial_with_the_defaults() -> None:
    space = build_search_space(MethodSettings)
    assert suggest(space, [], 0) == {}
    assert suggest(space, [Trial(0, {}, 0.5, 0.1, 1.0)], 0) is None


def test_fixed_settings_are_those_of_every_trial_and_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, concept = use_fake_methods(monkeypatch), small_concept(tmp_path / "pack")
    study = run(concept, tmp_path / "out", fixed={"layer": 3}, trials=3)
    assert {settings.layer for settings, _ in shift.applied} == {3}
    assert all("layer" not in trial.settings for trial in study.trials)
    assert study.best_settings["layer"] == 3
    assert set(study.best_settings) == {"scale", "layer", "last_layer"}
    for fixed, problem in (({"layer": "x"}, "layer"), ({"absent": 1}, "absent")):
        with pytest.raises(ConfigError, match=problem):
            run(concept, tmp_path / "other", fixed=fixed)
    with pytest.raises(RunError, match="fixed"):
        run(concept, tmp_path / "out", fixed={"layer": 2})


def test_an_interrupted_study_continues_with_the_same_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, concept = use_fake_methods(monkeypatch), small_concept(tmp_path / "pack")
    whole = run(concept, tmp_path / "whole")
    assert whole.trials[0].settings == {"scale": 0.1, "layer": 1, "last_layer": False}
    assert len({json.dumps(dict(trial.settings)) for trial in whole.trials}) == 4
    shift.applied.clear()

    def interrupt(settings: Any, task: Any) -> bool:
        if len(shift.applied) > 2:
            raise KeyboardInterrupt
        return False

    shift.fails = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(concept, tmp_path / "cut")
    shift.applied.clear()
    shift.fails = lambda settings, task: False
    continued = run(concept, tmp_path / "cut")
    assert len(shift.applied) == 2  # the third, which was interrupted, and the fourth
    assert without_time(continued.trials) == without_time(whole.trials)
    for trial in continued.trials:
        drift, effect = trial.point
        assert 0 <= effect <= 1
        assert drift > 0
    # A finished study runs nothing, and a larger budget continues it.
    shift.applied.clear()
    run(concept, tmp_path / "cut")
    assert not shift.applied
    assert len(run(concept, tmp_path / "cut", trials=5).trials) == 5
    with pytest.raises(RunError, match=r"num_examples.*output_dir") as error:
        run(concept, tmp_path / "cut", num_examples=5)
    assert error.value.code == "identity-mismatch"
    (tmp_path / "cut" / "study.json").write_text("{}")
    with pytest.raises(RunError) as error:
        run(concept, tmp_path / "cut")
    assert error.value.code == "study-broken"


def test_a_study_belongs_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_methods(monkeypatch)
    concept, out = small_concept(tmp_path / "pack"), tmp_path / "out"
    with locked(out), pytest.raises(RunError) as error:
        run(concept, out)
    assert error.value.code == "run-locked"
    # What a process that was killed at its start has left is no other output.
    (out / ".lock").touch()
    (out / ".study.json.0123abcd.new").touch()
    run(concept, out, trials=1)
    assert [one.name for one in out.iterdir()] == ["study.json"]


def test_failed_trials_are_recorded_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = use_fake_methods(monkeypatch, lambda settings, task: settings.scale == 0.1)
    study = run(small_concept(tmp_path / "pack"), tmp_path / "out", trials=3)
    assert [trial.state for trial in study.trials] == ["failed", "complete", "complete"]
    assert len(shift.applied) == 3
    values = json.loads((tmp_path / "out" / "study.json").read_text())
    assert "not finite" in values["trials"][0]["reason"]
    assert set(values) == {"identity", "budget", "max_drift", "trials", "best_trial"}
    assert {"model", "method", "concept", "direction", "num_examples", "data", "seed"} <= set(
        values["identity"]
    )
    assert study.best_trial is not None
    assert values["best_trial"]["settings"] == dict(study.best_trial.settings)


def test_the_time_limit_ends_a_study_before_its_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    study = run(small_concept(tmp_path / "pack"), tmp_path / "out", minutes=1e-9)
    assert len(study.trials) == 1


@pytest.mark.parametrize(
    "options",
    [{"trials": 0}, {"minutes": 0}, {"max_drift": 0}, {"num_examples": 1}, {"limit": 0}],
)
def test_an_error_names_the_argument(options: dict[str, Any], tmp_path: Path) -> None:
    (argument,) = options
    with pytest.raises(ConfigError, match=f"`{argument}`"):
        run(small_concept(tmp_path / "pack"), tmp_path / "out", **options)


def test_unknown_methods_weakening_and_options_of_a_loaded_model_are_refused(
    tmp_path: Path,
) -> None:
    concept = small_concept(tmp_path / "pack")
    with pytest.raises(ConfigError) as error:
        tune("pocket", "pocket-safety", "raise", "absent", output_dir=tmp_path / "out")
    assert error.value.code == "method-unknown"
    with pytest.raises(RefusedError):
        tune("pocket", "pocket-safety", "lower", "none", output_dir=tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        run(concept, tmp_path / "out", load_config=LoadConfig())
    assert error.value.code == "options-of-loaded-model"


def test_a_missing_optuna_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = small_concept(tmp_path / "pack")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"retouch\[compare\]") as error:
        run(concept, tmp_path / "out")
    assert error.value.code == "library-missing"
