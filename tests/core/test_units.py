"""Sizes are parsed and formatted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.core.errors import ConfigError
from retouch.core.units import layers_text, parse_size, size_text, time_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("8GB", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 gib", 3 * 2**29),
        (" 0.1GB ", 10**8),
        ("2TiB", 2**41),
        ("7kb", 7000),
        ("300", 300),
        ("300B", 300),
    ],
)
def test_a_size_is_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "24 GiBs", "-1GB", "1,5GB", "1e9", "inf", "24 G B", "0", "0GiB", "0.3B"],
)
def test_a_text_that_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="24GiB") as raised:
        parse_size(text)
    assert raised.value.code == "size-invalid"
    assert repr(text) in raised.value.message


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (141_107_412_992, "131 GiB"),
        (2**30 - 1, "1.0 GiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_a_size_is_formatted(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(1, 2**49))
def test_a_formatted_size_parses_to_within_its_rounding(size: int) -> None:
    assert parse_size(size_text(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.24, "0.2 s"),
        (12.4, "12 s"),
        (119, "119 s"),
        (150, "2.5 min"),
        (1e4, "2.8 h"),
        (1e6, "12 days"),
    ],
)
def test_a_duration_is_formatted(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("layers", "text"),
    [([3], "layer 3"), ([2, 3, 4], "layers 2-4"), ([1, 3], "layers 1, 3")],
)
def test_layers_are_formatted(layers: list[int], text: str) -> None:
    assert layers_text(layers) == text
