"""`compare.md`: the tables of a comparison, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retouch.comparison.grid import Grid
from retouch.comparison.result import Result
from retouch.comparison.summary import PairedTest, SummaryRow
from retouch.comparison.table import main_columns, make_table, markdown, other_columns
from retouch.core.formatting import DIRECTION_DONE, words


def render_markdown(
    grid: Grid,
    results: Sequence[Result],
    rows: Sequence[SummaryRow],
    tests: Sequence[PairedTest],
    titles: Mapping[str, str],
) -> str:
    """Render the page: for each number of examples the main table, and the other metrics."""
    concept, objective = grid.concept, grid.objective()
    columns = main_columns(objective, concept, grid.direction)
    others = other_columns(results, columns)
    seeds = f"{len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "one seed"
    limit = "" if grid.limit is None else f" ({grid.limit} examples per metric)"
    parts = [
        f"# {concept.title}, {DIRECTION_DONE[grid.direction]}: methods compared on {grid.model}\n",
        f"Means over {seeds} on the test split{limit}. The effect is "
        f"{words(objective.effect.metric)}, {objective.better} is better. Every method was trained "
        "on the same examples: as many source examples as the heading says, and as many target "
        f"examples. Settings: {grid.settings_origin}. Seconds are the time of the method, without "
        "the evaluation. The best value of each column is bold; the unedited model is left out.\n",
    ]
    if tests:
        parts.append(
            "p is the two-sided p-value of the difference from Retouch in effect and in drift: a "
            "paired bootstrap over examples and seeds, adjusted by Holm's method for the methods "
            "in the table.\n"
        )
    parts.append("![Effect against drift](compare.png)\n")
    for count in grid.num_examples:
        parts.append(f"## {count} examples\n")
        parts.append(markdown(make_table(count, rows, columns, tests, titles)))
        if others:
            parts.append(f"### The other metrics, {count} examples\n")
            parts.append(markdown(make_table(count, rows, others, (), titles, seconds=False)))
    return "\n".join(parts)
