from __future__ import annotations

import pytest

from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.edited import has_weights, refusal_concept, weights
from retouch.core.errors import ConfigError
from retouch.evaluation.strip_attack import strip_attack


def test_without_all_directions_nothing_is_left_of_the_edit() -> None:
    editable = add_random_adapter(char_editable(), 0.3)
    before = weights(editable)
    effect, drift = strip_attack(editable, refusal_concept(), "raise", directions=(0, 1, 64))
    assert (effect.metric, effect.along) == ("attack_refusal", "directions")
    values = dict(drift.points)
    assert drift.metric == "kl_per_token"
    assert values[0.0].value > values[1.0].value > values[64.0].value
    assert values[64.0].value == pytest.approx(0.0, abs=1e-6)
    assert has_weights(editable, before)


def test_there_must_be_an_adapter() -> None:
    with pytest.raises(ConfigError, match="no adapter") as error:
        strip_attack(char_editable(), refusal_concept(), "raise")
    assert error.value.code == "attack-not-applicable"
