"""The overview of comparisons: a row for each method, with the figures that a study is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.figures import table
from retouch.comparison.compare import Comparison
from retouch.comparison.objective import metric_key
from retouch.comparison.summary import SeedStats, SummaryRow
from retouch.comparison.table import MISSING, SIGNIFICANT
from retouch.core.formatting import show_value, words
from retouch.core.types import Better

Columns = Mapping[str, str]
"""Metrics as `suite/metric`, by their heading."""


def overview(found: Comparison, columns: Columns) -> str:
    """The table in Markdown: effect and drift of the concept, then the columns.

    A method with several seeds has the worst of them in brackets. A star marks a difference from
    Retouch with p < 0.05 after Holm's correction.
    """
    units, better = _units(found)
    objective = found.objective
    effect, drift = metric_key(objective.effect), metric_key(objective.drift)
    chosen = {words(objective.effect.metric): effect, **columns, "KL, the pack's retain set": drift}
    differs = {(one.method, one.metric) for one in found.tests if one.p_holm < SIGNIFICANT}
    seeds = {id: len(found.grid.seeds_of(id)) for id in found.grid.methods}
    lines = [["method", "seeds", *chosen, "seconds"]]
    for row in found.rows:
        line = [found.titles[row.method], str(seeds[row.method])]
        for key in chosen.values():
            star = " *" if (row.method, key) in differs else ""
            line.append(_entry(row, key, units, better) + star)
        line.append(MISSING if row.seconds is None else f"{row.seconds:.0f}")
        lines.append(line)
    return table(lines)


def _units(found: Comparison) -> tuple[dict[str, str], dict[str, Better]]:
    """The unit of each metric, and which way is better."""
    records = [record for result in found.results for record in result.records]
    units = {metric_key(one): one.unit for one in records}
    return units, {metric_key(one): one.better for one in records}


def _entry(
    row: SummaryRow, key: str, units: Mapping[str, str], better: Mapping[str, Better]
) -> str:
    stats: SeedStats | None = row.metrics.get(key)
    if stats is None:
        return MISSING
    mean, worst = (show_value(one, units[key]) for one in (stats.mean, stats.worst(better[key])))
    return mean if stats.low == stats.high else f"{mean} ({worst})"


def failures(rows: Sequence[SummaryRow]) -> list[str]:
    """Why methods failed, a sentence each."""
    return [
        f"{row.method}, seed {seed}: {reason}"
        for row in rows
        for seed, reason in row.failures.items()
    ]
