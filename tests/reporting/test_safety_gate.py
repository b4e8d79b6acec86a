"""The gate: safety is weakened only for a reason in writing."""

from __future__ import annotations

import pytest

from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.errors import RefusedError
from retouch.reporting.safety_gate import check_weakening, weakens

SAFETY = Concept("safety", "Safety", "", rows={}, directions={}, weakens="lower")
TONE = Concept("tone", "Tone", "", rows={}, directions={})


@pytest.mark.parametrize("reason", [None, "", "   ", "\n\t"])
def test_weakening_without_a_reason_is_refused(reason: str | None) -> None:
    config = EditConfig(direction="lower", allow_weakening=reason)
    with pytest.raises(RefusedError) as inputs:
        check_weakening(config, SAFETY)
    message = str(inputs.value)
    assert "safety" in message
    assert "--allow-weakening" in message
    assert "--direction raise" in message
    assert inputs.value.exit_code == 7


def test_weakening_with_a_reason_passes() -> None:
    check_weakening(EditConfig(direction="lower", allow_weakening="testing a filter"), SAFETY)


@pytest.mark.parametrize(
    ("direction", "concept"), [("raise", SAFETY), ("raise", TONE), ("lower", TONE)]
)
def test_every_other_edit_passes(direction: str, concept: Concept) -> None:
    config = EditConfig(direction=direction)
    assert not weakens(config, concept)
    check_weakening(config, concept)


def test_a_concept_that_weakens_when_raised_is_known_too() -> None:
    harm = Concept("harm", "", "", rows={}, directions={}, weakens="raise")
    with pytest.raises(RefusedError, match="--direction lower"):
        check_weakening(EditConfig(direction="raise"), harm)
