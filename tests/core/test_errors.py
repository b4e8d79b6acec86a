"""Errors keep their message, hint and code between processes."""

from __future__ import annotations

import pickle

import pytest

from retouch.core import errors
from retouch.core.errors import MAX_MESSAGE, RetouchError, shorten

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RetouchError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_can_be_pickled(kind: type[RetouchError]) -> None:
    error = pickle.loads(pickle.dumps(kind("A problem.", "A hint.", code="some-code")))
    assert type(error) is kind
    assert (error.message, error.hint, error.code) == ("A problem.", "A hint.", "some-code")
    assert str(error) == "A problem. A hint."


def test_every_kind_has_its_own_exit_code_and_default_code() -> None:
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS)
    assert len({kind("A problem.").code for kind in KINDS}) == len(KINDS)


def test_a_long_value_is_cut() -> None:
    assert shorten("short") == "short"
    assert shorten("a" * 100 + "b" * 100, 40) == "a" * 27 + "..." + "b" * 10
    error = RetouchError("x" * 100_000, "Fix it.")
    assert len(error.message) == MAX_MESSAGE
    assert str(error).endswith("x Fix it.")
