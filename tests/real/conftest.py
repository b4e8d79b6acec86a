"""Tests of real models take them from the user's cache: a conversion takes longer than a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def user_cache(test_cache: str | None) -> Iterator[None]:
    """Restore the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        if test_cache is None:
            patch.delenv("RETOUCH_CACHE")
        else:
            patch.setenv("RETOUCH_CACHE", test_cache)
        yield
