"""Adapters at lower strengths: what each method refuses at the over-refusal of Retouch.

Methods differ in how much they refuse and in what that costs, so that at their own settings they
cannot be compared. The strength of an adapter moves it along its own curve, from the base at 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.figures import table
from benchmarks.overview import Columns
from benchmarks.saved_records import saved_records
from retouch.comparison.compare import Comparison
from retouch.comparison.objective import metric_key
from retouch.comparison.result import final_score
from retouch.core.formatting import show_value
from retouch.core.metrics import Metrics
from retouch.core.types import Record
from retouch.evaluation.evaluate import BaseResults, evaluate
from retouch.models.adapter_merging import scaled
from retouch.models.editable_model import EditableModel
from retouch.models.load import adapter_added
from retouch.suites.registry import load_suite_concepts

STRENGTHS = (0.6, 0.8)
FOLDER = "strengths"

Values = Mapping[str, float]
"""Metrics as `suite/metric`."""
Curve = Mapping[float, Values]
"""The metrics of a method by its strength, from 0 (the base) to 1 (as it is)."""


def curves(
    editable: EditableModel,
    found: Comparison,
    methods: Sequence[str],
    suites: Sequence[str],
    data_dir: Path,
    max_new_tokens: int,
) -> dict[str, Curve]:
    """Measure the adapters of seed 0 at lower strengths, those whose result is not there yet.

    Args:
        editable: the base model.
        found: the comparison, whose folder has the adapters and gets the results.
        methods: those with an adapter; others are left out.
        suites: public evaluation sets, of those that the comparison has measured.
        data_dir: their files.
        max_new_tokens: maximum length of a response.
    """
    results = {result.point.method: result for result in found.results if result.point.seed == 0}
    known, concepts = BaseResults(), load_suite_concepts(suites, data_dir, None)
    out: dict[str, Curve] = {}
    for method in methods:
        point, whole = results[method].point, results[method].records
        adapter = found.path / "adapters" / point.name
        curve: dict[float, Values] = {0.0: {metric_key(one): one.before.value for one in whole}}
        for strength in STRENGTHS:
            file = found.path / FOLDER / f"{point.name}-{strength:g}.json"
            identity = {**found.grid.identity(point), "strength": strength, "suites": list(suites)}

            def measure(adapter: Path = adapter, strength: float = strength) -> Metrics:
                with adapter_added(editable, adapter), scaled(editable, strength):
                    return evaluate(
                        editable, [], suites=concepts, max_new_tokens=max_new_tokens, known=known
                    ).metrics

            records = saved_records(file, identity, measure if adapter.exists() else None)
            if records is not None:
                curve[strength] = _final_values(records)
        if len(curve) > 1:
            out[method] = {**curve, 1.0: _final_values(whole)}
    return out


def _final_values(records: Sequence[Record]) -> Values:
    return {metric_key(one): final_score(one).value for one in records}


def at_cost(curve: Curve, cost: str, limit: float) -> tuple[float, Values]:
    """The greatest strength whose cost is within a limit, and the metrics there, by interpolation.

    Strength 1 where the method costs no more than that as it is.
    """
    strengths = sorted(curve, reverse=True)
    if curve[strengths[0]][cost] <= limit:
        return strengths[0], curve[strengths[0]]
    for above, below in pairwise(strengths):
        high, low = curve[above], curve[below]
        if low[cost] <= limit < high[cost]:
            share = (limit - low[cost]) / (high[cost] - low[cost])
            values = {key: low[key] + share * (high[key] - low[key]) for key in high if key in low}
            return below + share * (above - below), values
    return 0.0, curve[0.0]


def strengths_table(
    found: Comparison, by_method: Mapping[str, Curve], columns: Columns, cost: str, reference: str
) -> str:
    """A row for each method, at the strength at which it costs what the reference does."""
    units = {metric_key(one): one.unit for result in found.results for one in result.records}
    limit = by_method[reference][1.0][cost]
    lines = [["method", "strength", *columns]]
    for method, curve in by_method.items():
        strength, values = at_cost(curve, cost, limit)
        texts = [show_value(values[key], units[key]) for key in columns.values()]
        lines.append([found.titles[method], f"{strength:.2f}", *texts])
    return table(lines)
