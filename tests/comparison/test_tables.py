"""The tables and the plot of a comparison."""

from __future__ import annotations

from retouch.comparison.objective import Objective
from retouch.comparison.plot import render_plot
from retouch.comparison.summary import PairedTest, SeedStats, SummaryRow
from retouch.comparison.table import Column, html, make_table, markdown, suite_table
from retouch.concepts.concept import MetricSpec
from retouch.core.types import Score


def row(method: str, effect: float, drift: float) -> SummaryRow:
    metrics = {"s/e": SeedStats(effect, effect - 0.1, effect), "d/k": SeedStats(drift, 0, 1)}
    return SummaryRow(method, 8, metrics, 1, {})


ROWS = [row("none", 0.9, 0.0), row("a", 0.8, 0.2), row("b", 0.7, 0.1), row("c", 0.8, 0.3)]


def test_the_best_method_is_marked_and_never_the_base() -> None:
    columns = [
        Column("s/e", "effect", "rate", "higher", worst=True),
        Column("d/k", "drift", "nats a token", "lower"),
    ]
    table = make_table(8, ROWS, columns)
    marked = {
        (entries[0].text, i)
        for entries in table.rows
        for i, entry in enumerate(entries)
        if entry.best
    }
    assert marked == {("a", 1), ("c", 1), ("b", 2)}
    assert "| a | **80.0 % (70.0 %)** | 0.2 | 1.0 |" in markdown(table)
    assert "<td>a</td><td><b>80.0 % (70.0 %)</b></td><td>0.2</td>" in html(table)


def test_the_star_of_a_difference_is_outside_of_the_bold_text() -> None:
    column = Column("s/e", "s: e", "rate", "higher")
    tests = [PairedTest("a", 8, "s/e", 1, Score(0.1, 0.05, 0.15, 8), 0.01, 0.02)]
    table = suite_table(8, ROWS, [column], tests, {})
    # CommonMark: a run of asterisks after a space ends no bold text.
    assert "| **80.0 % (70.0 %)** * | 70.0 % (60.0 %) |" in markdown(table)
    assert "<b>80.0 % (70.0 %)</b> *</td>" in html(table)


def test_a_plot_has_a_panel_for_each_number_of_examples() -> None:
    objective = Objective(
        MetricSpec("s", "e", (), "refusal"), "higher", MetricSpec("d", "k", (), "kl_tokens")
    )
    failed = SummaryRow("failed", 16, {}, None, {0: "The loss is not finite."})
    one, two = render_plot(objective, ROWS, {}), render_plot(objective, [*ROWS, failed], {})

    def height(png: bytes) -> int:
        return int.from_bytes(png[20:24], "big")

    assert height(two) == 2 * height(one)
