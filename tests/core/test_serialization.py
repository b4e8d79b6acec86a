"""JSON from elsewhere: finite numbers, and no nesting without end."""

from __future__ import annotations

import pytest

from retouch.core.serialization import parse_json


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "NaN"]}') == {"a": [1, 2.5, None, True, "NaN"]}


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e400]"])
def test_numbers_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no finite number"):
        parse_json(text)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        parse_json("[" * 100_000)
