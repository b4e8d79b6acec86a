"""Causal patching: the last layer restores the whole response."""

from __future__ import annotations

import pytest

from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.representations.patching import causal_trace


def test_patching_the_last_layer_restores_the_whole_response() -> None:
    editable = tiny_editable()
    source = [TokenizedChat((10 + i, 20, 30, 40, 50), 3) for i in range(6)]
    target = [TokenizedChat((60 + i, 21, 31, 40, 50), 3) for i in range(6)]
    found = causal_trace(editable, source, target)
    assert len(found.recovery) == 4
    assert found.pairs > 0
    assert found.recovery[-1] == pytest.approx(1.0, abs=1e-3)
