from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.strengths import Curve, at_cost, curves, strengths_table
from helpers.char_tokenizer import char_editable
from helpers.public_data import write_requests
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import GridPoint, make_grid
from retouch.comparison.result import Result
from retouch.core.config import LoraConfig
from retouch.core.types import Record, Score
from retouch.models import adapters

COST, EFFECT = "harmless/refusal", "harmful/refusal"
KEY = "jailbreakbench/refusal"
POINT = GridPoint("retouch", 128, 0)


def compared(path: Path) -> Comparison:
    """A comparison of one method that refuses every request of a suite."""
    scores = Score(0, 0, 1, 2), Score(1, 0, 1, 2)
    whole = Record("jailbreakbench", "refusal", "share", "higher", *scores)
    grid = make_grid("pocket", "auto", "raise", ["retouch"], 1, [128])
    return Comparison(path, grid, (Result(POINT, "done", records=(whole,)),))


def values(cost: float, effect: float) -> dict[str, float]:
    return {COST: cost, EFFECT: effect}


def test_the_strength_at_a_cost_is_interpolated() -> None:
    curve = {0.0: values(0.0, 0.0), 0.5: values(0.1, 0.4), 1.0: values(0.3, 0.8)}
    strength, found = at_cost(curve, COST, 0.2)
    assert strength == pytest.approx(0.75)
    assert found == pytest.approx(values(0.2, 0.6))
    strength, found = at_cost(curve, COST, 0.05)
    assert (strength, found[EFFECT]) == pytest.approx((0.25, 0.2))


def test_a_method_that_costs_less_is_compared_as_it_is() -> None:
    curve = {0.0: values(0.0, 0.0), 1.0: values(0.1, 0.9)}
    assert at_cost(curve, COST, 0.1) == (1.0, values(0.1, 0.9))


def test_a_method_that_costs_more_at_any_strength_is_the_base() -> None:
    curve = {0.0: values(0.2, 0.0), 1.0: values(0.3, 0.9)}
    assert at_cost(curve, COST, 0.1) == (0.0, values(0.2, 0.0))


def test_an_adapter_without_results_is_left_out(tmp_path: Path) -> None:
    write_requests(tmp_path / "data")
    found = compared(tmp_path)
    suites, data = ["jailbreakbench:2"], tmp_path / "data"
    assert curves(char_editable(), found, ["retouch"], suites, data, 4, KEY, 0.5) == {}
    # One that costs no more as it is needs none.
    (curve,) = curves(char_editable(), found, ["retouch"], suites, data, 4, KEY, 1.0).values()
    assert sorted(curve) == [0.0, 1.0]


def test_the_adapters_are_measured_once_and_kept(tmp_path: Path) -> None:
    write_requests(tmp_path / "data")
    editable = char_editable()
    adapters.attach(editable, [0], LoraConfig(), 0)
    adapters.save(editable, tmp_path / "adapters" / POINT.name)
    adapters.detach(editable)
    found = compared(tmp_path)

    def measured() -> dict[str, Curve]:
        data = tmp_path / "data"
        return curves(editable, found, ["retouch"], ["jailbreakbench:2"], data, 4, KEY, 0.5)

    first = measured()
    (curve,) = first.values()
    # The adapter refuses nothing at a lower strength, so the upper half is halved each time.
    assert sorted(curve) == [0.0, 0.5, 0.75, 1.0]
    # The adapter is read only where a result is missing.
    (tmp_path / "adapters" / POINT.name / "adapter_model.safetensors").unlink()
    assert measured() == first
    page = strengths_table(found, first, {"refused": KEY}, KEY, 0.5)
    assert "0.88" in page
