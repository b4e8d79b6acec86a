"""The safety gate: a weakening edit needs a written reason."""

from __future__ import annotations

import pytest

from retouch.concepts.concept import Concept
from retouch.core.errors import RefusedError
from retouch.core.types import Direction, Record, Score
from retouch.evaluation.safety_probe import SafetyProbe
from retouch.reporting.safety_gate import check_probe, check_weakening, weakens

SAFETY = Concept("safety", "Safety", "", examples={}, directions={}, weakens="lower")
TONE = Concept("tone", "Tone", "", examples={}, directions={})


@pytest.mark.parametrize("reason", [None, "", "   ", "\n\t"])
def test_weakening_without_a_reason_is_refused(reason: str | None) -> None:
    with pytest.raises(RefusedError) as raised:
        check_weakening("lower", reason, SAFETY)
    error = raised.value
    assert (error.code, error.exit_code) == ("weakening", 7)
    assert "`safety`" in error.message
    assert "`allow_weakening`" in error.hint
    assert "`direction` to raise" in error.hint


def test_weakening_with_a_reason_passes() -> None:
    check_weakening("lower", "testing a filter", SAFETY)


@pytest.mark.parametrize(
    ("direction", "concept"), [("raise", SAFETY), ("raise", TONE), ("lower", TONE)]
)
def test_every_other_edit_passes(direction: Direction, concept: Concept) -> None:
    assert not weakens(direction, concept)
    check_weakening(direction, None, concept)


def test_a_concept_may_weaken_safety_when_it_is_raised() -> None:
    harm = Concept("harm", "", "", examples={}, directions={}, weakens="raise")
    assert weakens("raise", harm)
    with pytest.raises(RefusedError) as raised:
        check_weakening("raise", None, harm)
    assert "`direction` to lower" in raised.value.hint


def test_a_measured_loss_needs_a_reason() -> None:
    record = Record(
        "p", "refused", "rate", "higher", Score(0.5, 0.4, 0.6, 64), Score(0.1, 0, 0.2, 64)
    )
    check_probe(SafetyProbe((record,), ()), None, "The edit")
    check_probe(SafetyProbe((record,), ("refused",)), "an audit", "The edit")
    for reason in (None, " "):
        with pytest.raises(RefusedError) as raised:
            check_probe(SafetyProbe((record,), ("refused",)), reason, "The sum", "Then go on.")
        assert raised.value.message.startswith("The sum weakens the model's safety")
        assert "refused 50.0 % -> 10.0 %" in raised.value.message
        assert raised.value.hint.endswith("Then go on.")
