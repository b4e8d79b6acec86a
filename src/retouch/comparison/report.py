"""`compare.md`: the tables of a comparison, with what one has to know to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retouch.comparison.grid import Grid
from retouch.comparison.objective import Objective
from retouch.comparison.result import Result
from retouch.comparison.summary import PairedTest, SummaryRow
from retouch.comparison.table import columns, make_table, markdown, other_columns
from retouch.core.formatting import DIRECTION_DONE, words


def render_page(
    grid: Grid,
    objective: Objective,
    results: Sequence[Result],
    lines: Sequence[SummaryRow],
    paired_tests: Sequence[PairedTest],
    titles: Mapping[str, str],
) -> str:
    """The page: for every number of labels the table, and the metrics that are not in it."""
    concept = grid.concept
    shown = columns(objective, concept, grid.direction)
    others = other_columns(results, shown)
    parts = [
        f"# {concept.title}, {DIRECTION_DONE[grid.direction]}: methods compared on {grid.model}\n",
        _read_me(grid, objective, bool(paired_tests)),
        "![Effect against drift](compare.png)\n",
    ]
    for labels in grid.labels:
        parts.append(f"## {labels} labels\n")
        parts.append(markdown(make_table(labels, lines, shown, paired_tests, titles)))
        if others:
            parts.append(f"### The other metrics, {labels} labels\n")
            parts.append(markdown(make_table(labels, lines, others, (), titles, seconds=False)))
    return "\n".join(parts)


def _read_me(grid: Grid, objective: Objective, tested: bool) -> str:
    seeds = f"{len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "one seed"
    rows = "" if grid.limit is None else f", the first {grid.limit} rows a metric"
    text = (
        f"Means over {seeds} on the test split{rows}; the effect is {words(objective.effect.metric)}, "
        f"{objective.better} is better. Every method got the same rows and the same labels, of each "
        f"side as many as the heading says. Settings: {grid.tuned}. Seconds are the method's own, "
        "without the measurement. Bold is the best; the unedited model takes no part in that.\n"
    )
    if tested:
        text += (
            "\np is two-sided, of the difference from Retouch in effect and in drift: a paired "
            "bootstrap over rows and seeds, adjusted after Holm for the methods of the table.\n"
        )
    return text
