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
    """A comparison of a method that refuses every request of a suite with one that refuses half.

    The second seed of the latter refuses as few as a quarter.
    """
    results = []
    cases = [("retouch", 0, 1.0), ("lorra", 0, 0.5), ("lorra", 1, 0.25), ("dpo", 0, None)]
    for method, seed, refused in cases:
        point = GridPoint(method, 128, seed)
        if refused is None:
            results.append(Result(point, "failed", "The loss is not finite."))
            continue
        scores = Score(0, 0, 1, 2), Score(refused, 0, 1, 2)
        record = Record("jailbreakbench", "refusal", "share", "higher", *scores)
        results.append(Result(point, "done", records=(record,)))
    grid = make_grid("pocket", "auto", "raise", ["retouch", "lorra", "dpo"], 1, [128])
    return Comparison(path, grid, tuple(results))


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


def test_a_method_without_results_is_left_out(tmp_path: Path) -> None:
    write_requests(tmp_path / "data")
    found, editable = compared(tmp_path), char_editable()

    def measured(reference: str) -> dict[str, tuple[Curve, ...]]:
        suites, data = ["jailbreakbench:2"], tmp_path / "data"
        return curves(editable, found, ["retouch", "dpo"], suites, data, 4, KEY, reference)

    # There is no adapter to measure at a lower strength.
    assert measured("lorra") == {}
    # One that costs no more as it is needs none.
    ((curve,),) = measured("retouch").values()
    assert sorted(curve) == [0.0, 1.0]
    # A reference that failed has no cost.
    assert measured("dpo") == {}


def test_the_adapters_are_measured_once_and_kept(tmp_path: Path) -> None:
    write_requests(tmp_path / "data")
    editable = char_editable()
    adapters.attach(editable, [0], LoraConfig(), 0)
    adapters.save(editable, tmp_path / "adapters" / POINT.name)
    adapters.detach(editable)
    found = compared(tmp_path)

    def measured() -> dict[str, tuple[Curve, ...]]:
        data = tmp_path / "data"
        methods, suites = ["retouch", "lorra"], ["jailbreakbench:2"]
        return curves(editable, found, methods, suites, data, 4, KEY, "lorra")

    first = measured()
    # The adapter refuses nothing at a lower strength, so the upper half is halved each time.
    assert [sorted(curve) for curve in first["retouch"]] == [[0.0, 0.5, 0.75, 1.0]]
    # The reference is not measured, not even the seed that costs more than the mean.
    assert [sorted(curve) for curve in first["lorra"]] == [[0.0, 1.0]] * 2
    # The adapter is read only where a result is missing.
    (tmp_path / "adapters" / POINT.name / "adapter_model.safetensors").unlink()
    assert measured() == first
    page = strengths_table(found, first, {"refused": KEY}, KEY, "lorra")
    # A cost of 0.375, the mean of two seeds, lies three eighths of the way from 0.75 to 1.
    assert "0.84" in page
    assert page.count("0.375") == 2
