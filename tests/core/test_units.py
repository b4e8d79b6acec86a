from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.core.errors import ConfigError
from retouch.core.units import parse_size, size_text


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
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "24 GiBs", "-1GB", "1,5GB", "1e9", "inf", "24 G B"])
def test_what_is_no_size_is_told_how_one_looks(text: str) -> None:
    with pytest.raises(ConfigError, match="24GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0GiB", "0.3B"])
def test_nothing_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        parse_size(text)


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
def test_a_size_is_written(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(1, 2**49))
def test_what_is_written_reads_back_to_within_its_rounding(size: int) -> None:
    assert parse_size(size_text(size)) == pytest.approx(size, rel=0.05)
