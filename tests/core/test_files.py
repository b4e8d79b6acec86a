"""Files from elsewhere: regular and bounded, with plain values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retouch.concepts.readers import read_table
from retouch.core.config_file import load_yaml, read_config_file
from retouch.core.errors import ConfigError, DataError
from retouch.core.files import read_file, read_text


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("äöü")
    assert read_text(file, 100) == "äöü"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_text(link, 100) == "äöü"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="larger"):
        read_file(file, 100)
    assert len(read_file(file, 101)) == 101


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_read(path: str) -> None:
    with pytest.raises(OSError, match="regular"):
        read_file(Path(path), 100)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="regular"):
        read_config_file(fifo)
    table = tmp_path / "fifo.csv"
    os.mkfifo(table)
    with pytest.raises(DataError, match="regular"):
        list(read_table(table))


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "aliases"),
        ("a: &a x\nb: [" + "*a, " * 101 + "]", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "python/object"),
        ("1: x", "`1` is not a text"),
        ("null: x", "`null` is not a text"),
        ("on: x", "`on` is not a text"),
        ("a: 1\na: 2", "appears twice"),
        ("? [a]\n: x", ""),
        ("[" * 5000, ""),
        (f"a: {'1' * 5000}", "digits"),
        ("a: [", ""),
        ("- x", "mapping"),
    ],
)
def test_yaml_of_more_than_plain_values_is_one_error(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config_file(file)
    assert part in error.value.message


def test_an_alias_is_the_value_again() -> None:
    assert load_yaml("a: &a [x]\nb: *a\nc: *a") == {key: ["x"] for key in "abc"}


def test_a_date_is_a_text() -> None:
    assert load_yaml("a: 2020-02-30\nb: 2020-02-03") == {"a": "2020-02-30", "b": "2020-02-03"}
