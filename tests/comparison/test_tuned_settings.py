"""Files of tuned settings: those that ship, and those that `retouch tune` writes."""

from __future__ import annotations

import dataclasses
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from retouch.comparison import tuned_settings
from retouch.comparison.tuned_settings import find_tuned, make_settings, save_settings
from retouch.concepts.registry import load_concept
from retouch.core.errors import ConfigError
from retouch.core.types import DIRECTIONS
from retouch.methods.registry import get_method


def test_saved_settings_are_read_back_with_their_budget(tmp_path: Path) -> None:
    concept, file = load_concept("pocket-safety"), tmp_path / "tuned.yaml"
    save_settings(file, "retouch", {"lora.r": 8}, "4 trials")
    save_settings(file, "steering", {"strength": 0.5, "layers": [1, 2]}, "40 trials")
    save_settings(file, "retouch", {"lora.r": 4, "train.rounds": 3}, "9 trials")
    values, origin = find_tuned(concept, "raise", file)
    assert values == {
        "retouch": {"lora.r": 4, "train.rounds": 3},
        "steering": {"strength": 0.5, "layers": [1, 2]},
    }
    assert origin == file.name
    text = file.read_text()
    assert "# retouch: 9 trials\n" in text
    assert "# steering: 40 trials\n" in text
    file.write_text("absent: {}")
    with pytest.raises(ConfigError, match="absent") as error:
        find_tuned(concept, "raise", file)
    assert error.value.code == "method-unknown"


def test_every_shipped_file_has_valid_settings() -> None:
    files = resources.files("retouch.comparison").joinpath("tuned").iterdir()
    names = {file.name.removesuffix(".yaml") for file in files}
    assert names
    for name in names:
        concept, direction = name.rsplit("-", 1)
        assert direction in DIRECTIONS
        values, origin = find_tuned(load_concept(concept), direction)  # type: ignore[arg-type]
        assert origin.startswith("shipped")
        for id, settings in values.items():
            make_settings(get_method(id), settings, origin)


def test_shipped_settings_are_for_the_built_in_concept_alone() -> None:
    concept = load_concept("pocket-safety")
    assert find_tuned(concept, "raise")[0]
    changed = dataclasses.replace(concept, hash="0")
    assert find_tuned(changed, "raise") == ({}, "the defaults")


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.rounds.*0") as error:
        make_settings(get_method("retouch"), {"train.rounds": 0}, "tuned.yaml")
    assert error.value.code == "settings-invalid"
    with pytest.raises(ConfigError, match=r"absent.*strength"):
        make_settings(get_method("steering"), {"absent": 0}, "tuned.yaml")


def test_two_searches_that_end_at_once_both_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_slowly(file: Path) -> Any:
        found = read(file)
        time.sleep(0.2)
        return found

    read = tuned_settings._read
    monkeypatch.setattr(tuned_settings, "_read", read_slowly)
    file = tmp_path / "tuned.yaml"
    save_settings(file, "dpo", {"max_steps": 1}, "1 trial")
    threads = [
        threading.Thread(target=save_settings, args=(file, name, {"max_steps": 2}, "2 trials"))
        for name in ("lorra", "lora-sft", "circuit-breaker")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(yaml.safe_load(file.read_text())) == {"dpo", "lorra", "lora-sft", "circuit-breaker"}
    assert [one.name for one in tmp_path.iterdir()] == ["tuned.yaml"]
