from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.strengths import STRENGTHS, Curve, at_cost, curves, strengths_table
from helpers.char_tokenizer import char_editable
from helpers.public_data import write_requests
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import GridPoint, make_grid
from retouch.comparison.result import Result
from retouch.core.config import LoraConfig
from retouch.core.types import Record, Score
from retouch.models import adapters

COST, EFFECT = "harmless/refusal", "harmful/refusal"


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


def test_the_adapters_are_measured_once_and_kept(tmp_path: Path) -> None:
    write_requests(tmp_path / "data")
    editable = char_editable()
    point = GridPoint("retouch", 128, 0)
    adapters.attach(editable, [0], LoraConfig(), 0)
    adapters.save(editable, tmp_path / "adapters" / point.name)
    adapters.detach(editable)
    whole = Record(
        "jailbreakbench", "refusal", "share", "higher", Score(0, 0, 1, 2), Score(1, 0, 1, 2)
    )
    grid = make_grid("pocket", "auto", "raise", ["retouch"], 1, [128])
    found = Comparison(tmp_path, grid, (Result(point, "done", records=(whole,)),))

    def measured() -> dict[str, Curve]:
        return curves(editable, found, ["retouch"], ["jailbreakbench:2"], tmp_path / "data", 4)

    first = measured()
    (curve,) = first.values()
    assert list(curve) == [0.0, *STRENGTHS, 1.0]
    # The adapter is read only where a result is missing.
    (tmp_path / "adapters" / point.name / "adapter_model.safetensors").unlink()
    assert measured() == first
    key = "jailbreakbench/refusal"
    page = strengths_table(found, first, {"refused": key}, key, "retouch")
    assert "1.00" in page
