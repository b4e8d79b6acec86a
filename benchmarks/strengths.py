"""Adapters at lower strengths: what each method refuses at the over-refusal of Retouch.

Methods differ in how much they refuse and in what that costs, so that at their own settings they
cannot be compared. The strength of an adapter moves it along its own curve, from the base at 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.figures import table
from benchmarks.overview import Columns
from benchmarks.saved_records import saved_records
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import GridPoint
from retouch.comparison.objective import metric_key
from retouch.comparison.result import Result, final_score
from retouch.core.formatting import show_value
from retouch.core.metrics import Metrics
from retouch.core.types import Record
from retouch.evaluation.evaluate import BaseResults, evaluate
from retouch.models.adapter_merging import scaled
from retouch.models.editable_model import EditableModel
from retouch.models.load import adapter_added
from retouch.suites.registry import load_suite_concepts

HALVINGS = 2
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
    cost: str,
    reference: str,
) -> dict[str, tuple[Curve, ...]]:
    """Measure adapters at the strengths around the one that costs what another method does.

    The strengths between which the cost passes that of the reference, the mean of its seeds, are
    halved, at first 0 and 1. An adapter that costs no more as it is needs no further measurement,
    and the reference none at all.

    Args:
        editable: the base model.
        found: the comparison, whose folder has the adapters and gets the results.
        methods: those with an adapter. Left out is a seed that failed, or whose adapter is needed
            and absent.
        suites: public evaluation sets, of those that the comparison has measured.
        data_dir: their files.
        max_new_tokens: maximum length of a response.
        cost: the metric that is the cost, as `suite/metric`.
        reference: the method that all are compared with. If it failed, nothing is measured.

    Returns:
        The curves of each method, one for each seed.
    """
    results = {
        method: [one for one in found.results if one.point.method == method and one.records]
        for method in {reference, *methods}
    }
    if not results[reference]:
        return {}
    limit = statistics.fmean(_final_values(one.records)[cost] for one in results[reference])
    known, concepts = BaseResults(), load_suite_concepts(suites, data_dir, None)

    def saved(point: GridPoint, strength: float) -> Values | None:
        adapter = found.path / "adapters" / point.name
        file = found.path / FOLDER / f"{point.name}-{strength:g}.json"
        identity = {**found.grid.identity(point), "strength": strength, "suites": list(suites)}

        def measure() -> Metrics:
            with adapter_added(editable, adapter), scaled(editable, strength):
                return evaluate(
                    editable, [], suites=concepts, max_new_tokens=max_new_tokens, known=known
                ).metrics

        records = saved_records(file, identity, measure if adapter.exists() else None)
        return None if records is None else _final_values(records)

    def complete(result: Result) -> Curve | None:
        before = {metric_key(one): one.before.value for one in result.records}
        curve = {0.0: before, 1.0: _final_values(result.records)}
        for _ in range(HALVINGS if result.point.method != reference else 0):
            around = _around(curve, cost, limit)
            if around is None:
                break
            strength = sum(around) / 2
            values = saved(result.point, strength)
            if values is None:
                return None
            curve[strength] = values
        return curve

    by_method: dict[str, tuple[Curve, ...]] = {}
    for method in methods:
        measured = [complete(result) for result in results[method]]
        by_method[method] = tuple(curve for curve in measured if curve is not None)
    return {method: of_seeds for method, of_seeds in by_method.items() if of_seeds}


def _final_values(records: Sequence[Record]) -> Values:
    return {metric_key(one): final_score(one).value for one in records}


def _around(curve: Curve, cost: str, limit: float) -> tuple[float, float] | None:
    """The greatest strength within a limit, and the next; None if that is the greatest of all."""
    strengths = sorted(curve, reverse=True)
    if curve[strengths[0]][cost] <= limit:
        return None
    pairs = ((low, high) for high, low in pairwise(strengths) if curve[low][cost] <= limit)
    return next(pairs, (0.0, strengths[-2]))


def at_cost(curve: Curve, cost: str, limit: float) -> tuple[float, Values]:
    """The greatest strength whose cost is within a limit, and the metrics there, by interpolation.

    Strength 1 where the method costs no more than that as it is; 0 where the base costs more.
    """
    around = _around(curve, cost, limit)
    if around is None:
        return max(curve), curve[max(curve)]
    below, above = around
    low, high = curve[below], curve[above]
    if low[cost] > limit:
        return 0.0, curve[0.0]
    share = (limit - low[cost]) / (high[cost] - low[cost])
    values = {key: low[key] + share * (high[key] - low[key]) for key in high if key in low}
    return below + share * (above - below), values


def strengths_table(
    found: Comparison,
    by_method: Mapping[str, Sequence[Curve]],
    columns: Columns,
    cost: str,
    reference: str,
) -> str:
    """A row for each method, at the strengths at which its seeds cost what the reference does.

    The figures are means over seeds.
    """
    limit = statistics.fmean(curve[1.0][cost] for curve in by_method[reference])
    units = {metric_key(one): one.unit for result in found.results for one in result.records}
    lines = [["method", "seeds", "strength", *columns]]
    for method, of_seeds in by_method.items():
        if method == reference:
            points = [(1.0, curve[1.0]) for curve in of_seeds]
        else:
            points = [at_cost(curve, cost, limit) for curve in of_seeds]
        strength = statistics.fmean(one for one, _ in points)
        texts = [
            show_value(statistics.fmean(values[key] for _, values in points), units[key])
            for key in columns.values()
        ]
        lines.append([found.titles[method], str(len(points)), f"{strength:.2f}", *texts])
    return table(lines)
