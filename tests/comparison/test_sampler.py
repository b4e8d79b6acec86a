"""The search space of a method's settings, and the settings that are suggested."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

from helpers.fake_methods import ShiftSettings
from retouch.comparison.study import Trial
from retouch.comparison.tune import build_search_space, suggest
from retouch.core.config import MethodConfig, option
from retouch.core.options import nest
from retouch.methods.method import MethodSettings


def test_the_space_is_built_from_the_settings() -> None:
    scale, layer, last_layer = build_search_space(ShiftSettings)
    assert scale.distribution == FloatDistribution(0.01, 3.0, log=True)
    assert layer.distribution == IntDistribution(0, 3)
    assert (layer.choices, last_layer.choices) == ((), (False, True))
    assert scale.value(0.123456) == 0.123
    assert (layer.value(2), last_layer.value(1), last_layer.sample(True)) == (2, True, 1)


def test_nested_groups_are_searched_by_dotted_path() -> None:
    space = build_search_space(MethodConfig, {"loss.retain_weight": 60.0, "train.rounds": 3})
    assert suggest(space, [], 0) == {
        "train.learning_rate": 5e-3,
        "loss.adversarial_weight": 1.0,
        "loss.matching_weight": 1.0,
        "loss.retain_weight": 60.0,
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
