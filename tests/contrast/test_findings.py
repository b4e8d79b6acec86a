"""The rules by which a contrast check warns or stops an edit."""

from __future__ import annotations

from typing import Any

import pytest

from retouch.contrast.findings import find_findings
from retouch.contrast.report import ContrastReport
from retouch.core.types import Score
from retouch.evaluation.statistics import wilson


def report(**changes: Any) -> ContrastReport:
    values: dict[str, Any] = {
        "concept": "c",
        "direction": "raise",
        "metric": "refused",
        "better": "higher",
        "num_examples": 48,
        "paired": True,
        "num_given": 0,
        "source": wilson(1, 48),
        "target": wilson(46, 48),
        "given": None,
        "gap": Score(1.0, 0.9, 1.1, 48),
        "separability": wilson(96, 96),
        "layers": (3,),
        "samples": (),
        "findings": (),
    }
    return ContrastReport(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "elicited", "expected"),
    [
        ({}, False, {"contrast": "ok"}),
        ({"target": wilson(9, 48)}, False, {"contrast-target": "error"}),
        # Rare, but of so few responses that the rate may be high.
        (
            {"target": wilson(0, 3)},
            False,
            {"contrast-target": "warning", "contrast-few": "warning"},
        ),
        ({"target": wilson(20, 48)}, True, {"contrast-target": "warning"}),
        (
            {"target": wilson(30, 48), "source": wilson(31, 48)},
            True,
            {"contrast-target": "warning"},
        ),
        ({"target": wilson(0, 48), "num_given": 48}, False, {"contrast": "ok"}),
        ({"target": wilson(0, 48), "num_given": 48}, True, {"contrast-target": "warning"}),
        ({"given": wilson(3, 48), "num_given": 48}, False, {"contrast-responses": "warning"}),
        ({"gap": Score(-0.2, -0.3, -0.1, 48)}, False, {"contrast-gap": "error"}),
        ({"gap": Score(-0.2, -0.3, 0.1, 48), "num_given": 48}, False, {"contrast-gap": "warning"}),
        ({"gap": Score(0.3, -0.1, 0.7, 8)}, False, {"contrast-gap": "warning"}),
        ({"gap": Score(0.05, 0.04, 0.06, 48)}, False, {"contrast-gap": "warning"}),
        ({"source": wilson(47, 48)}, False, {"contrast-done": "warning"}),
        ({"separability": wilson(50, 96)}, False, {"contrast-states": "warning"}),
        # Nothing but the states can be compared.
        ({"target": None, "source": None, "gap": None}, False, {"contrast": "ok"}),
    ],
)
def test_the_rules(changes: dict[str, Any], elicited: bool, expected: dict[str, str]) -> None:
    found = find_findings(report(**changes), elicited=elicited)
    assert {finding.code: finding.level for finding in found} == expected


def test_an_instruction_that_the_base_does_not_follow_is_named() -> None:
    (found,) = find_findings(report(target=wilson(2, 48)), elicited=True, instruction=True)
    assert found.level == "error"
    assert "does not follow the instruction" in found.message
