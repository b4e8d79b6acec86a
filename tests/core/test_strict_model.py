"""What is no number is refused in the place of one, wherever settings come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retouch.core.config import MAX_SEED
from retouch.core.config_file import read_config_file, resolve
from retouch.core.errors import ConfigError
from retouch.core.options import OPTIONS, nest
from retouch.evaluation.judge_formats import AnswerOutput
from retouch.methods.registry import get_method

NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), "nan", "inf", True, 2**63)
CASES = [
    (option.path, value)
    for option in OPTIONS
    if option.kind in (int, float)
    for value in (*NO_NUMBERS, *([str(2**64)] if option.kind is int else []))
]


@pytest.mark.parametrize(("path", "value"), CASES)
def test_every_setting_that_is_a_number_refuses_what_is_none(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=path):
        resolve(nest({path: value}))


def test_a_file_has_no_infinite_values(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("loss: {kl_weight: .inf}\n")
    with pytest.raises(ConfigError, match=r"`loss\.kl_weight` must be a finite number, got inf"):
        resolve(read_config_file(file))
    file.write_text("train: {rounds: true}\n")
    with pytest.raises(ConfigError, match=r"`train\.rounds` must be a number, got True"):
        resolve(read_config_file(file))


def test_a_seed_is_one_that_every_library_takes() -> None:
    assert resolve({"seed": MAX_SEED}).seed == MAX_SEED
    with pytest.raises(ConfigError, match="seed"):
        resolve({"seed": MAX_SEED + 1})


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve({"train": {"rounds": "9" * 100_000}, "x" * 100_000: 1})
    assert len(str(raised.value)) < 5000


def test_settings_of_methods_and_formats_are_as_strict() -> None:
    with pytest.raises(ValidationError, match="finite"):
        get_method("lora-sft").settings.model_validate({"learning_rate": float("inf")})
    with pytest.raises(ValidationError, match="finite"):
        AnswerOutput.model_validate({"kind": "answers", "threshold": float("nan")})
