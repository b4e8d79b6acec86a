"""The card of a merged adapter."""

from __future__ import annotations

import pytest

from retouch.core.types import Record, Score
from retouch.evaluation.safety_probe import SafetyProbe
from retouch.reporting.merged_card import MergedEdit, render_merged_card


def record(after: float) -> Record:
    return Record(
        "tone", "cheerful", "rate", "higher", Score(0.1, 0, 0.2, 50), Score(after, 0, 1, 50)
    )


def card(*reasons: str | None) -> str:
    probe = SafetyProbe(
        (Record("safety-probe", "refused", "rate", "higher", *[Score(0.5, 0.4, 0.6, 64)] * 2),), ()
    )
    edits = [
        MergedEdit("tone-1", "a|b", "tone", "raise", 1.0, [record(0.9)]),
        MergedEdit("truth", "a|b", "truth", "lower", -0.5, [record(0.2)]),
    ]
    return render_merged_card(edits, [record(0.7)], probe, reasons)


def test_it_has_each_edit_the_sum_and_the_safety() -> None:
    text = card(None)
    assert "- tone raised, weight 1" in text
    assert "- truth lowered, weight -0.5" in text
    assert "| cheerful | 10.0 % | 90.0 % | 20.0 % | 70.0 % |" in text
    assert "refused 50.0 %" in text
    assert "a\\|b" in text
    assert "weakens" not in text


@pytest.mark.parametrize("reasons", [("an audit",), (None, "an audit"), ("an audit", "an audit")])
def test_a_reason_is_a_warning(reasons: tuple[str | None, ...]) -> None:
    text = card(*reasons)
    assert "safety-weakened" in text
    assert text.count("an audit") == 1
