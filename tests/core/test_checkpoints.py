"""Checkpoints: damage and changes of the run are noticed, and what is whole is read back."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retouch.core.checkpoints import BLANK, Checkpoints, Identity
from retouch.core.errors import RunError

IDENTITY = Identity({"seed": 3, "train.learning_rate": 5e-4, "layers": [1, 2]}, {"data": "abc"})
VALUE = {"text": f'Hö "checksum": "{BLANK}"', "numbers": [1.5, None, True]}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", IDENTITY)


def code_of(checkpoints: Checkpoints, name: str = "a.json") -> str:
    with pytest.raises(RunError) as error:
        checkpoints.read_json(name)
    assert error.value.hint
    return error.value.code


def test_a_value_is_read_back(checkpoints: Checkpoints) -> None:
    assert checkpoints.read_json("a.json") is None
    checkpoints.write_json("a.json", VALUE)
    assert checkpoints.read_json("a.json") == VALUE
    file = checkpoints.folder / "a.json"
    first = file.read_bytes()
    assert json.loads(first)["checksum"] != BLANK
    checkpoints.write_json("a.json", VALUE)
    assert file.read_bytes() == first
    checkpoints.remove("a.json")
    checkpoints.remove("a.json")
    assert checkpoints.read_json("a.json") is None


def test_every_changed_byte_and_every_cut_is_noticed(checkpoints: Checkpoints) -> None:
    checkpoints.write_json("a.json", VALUE)
    file, rng = checkpoints.folder / "a.json", random.Random(0)
    whole = file.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= rng.randrange(1, 256)
        file.write_bytes(changed)
        assert code_of(checkpoints) == "checkpoint-broken"
    for content in (b"", b"{}", whole[:-1], whole + b" ", b"{" * 100_000):
        file.write_bytes(content)
        assert code_of(checkpoints) == "checkpoint-broken"
    file.unlink()
    file.mkdir()
    assert code_of(checkpoints) == "checkpoint-broken"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {**IDENTITY.settings, "seed": 4}}, "`seed` is 4 and was 3"),
        ({"settings": {**IDENTITY.settings, "layers": [1]}}, r"`layers` is \[1\] and was \[1, 2\]"),
        ({"hashes": {"data": "abd"}}, "data changed"),
    ],
)
def test_a_change_of_the_run_is_named(
    checkpoints: Checkpoints, change: dict[str, Any], named: str
) -> None:
    checkpoints.write_json("a.json", VALUE)
    changed = replace(checkpoints, identity=replace(IDENTITY, **change))
    for read in (changed.check, lambda: changed.read_json("a.json")):
        with pytest.raises(RunError, match=named) as error:
            read()
        assert error.value.code == "checkpoint-differs"
        assert str(changed.folder) in error.value.hint
        # The command line leaves the names of settings in such messages as they are.
        assert error.value.message.startswith(f"In {changed.folder.parent / 'config.yaml'}")


def test_what_one_of_the_identities_lacks_is_no_change(checkpoints: Checkpoints) -> None:
    checkpoints.write_json("a.json", VALUE)
    for identity in (Identity({}, {}), Identity({**IDENTITY.settings, "new": 1}, {"weights": "x"})):
        assert replace(checkpoints, identity=identity).read_json("a.json") == VALUE


def test_a_result_is_made_once(checkpoints: Checkpoints) -> None:
    made = []

    def make() -> Identity:
        made.append(1)
        return IDENTITY

    assert checkpoints.kept("a.json", Identity, make) == IDENTITY
    assert checkpoints.kept("a.json", Identity, make) == IDENTITY
    assert len(made) == 1
    checkpoints.write_json("a.json", {"settings": 3})
    with pytest.raises(RunError) as error:
        checkpoints.kept("a.json", Identity, make)
    assert error.value.code == "checkpoint-broken"
