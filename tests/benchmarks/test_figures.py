from __future__ import annotations

from benchmarks.figures import Figure, FigureResult, figures_table
from retouch.core.types import Score


def score(value: float, n: int = 10) -> Score:
    return Score(value, value - 0.1, value + 0.1, n)


def test_figures_are_compared_with_their_targets() -> None:
    refused = FigureResult(Figure("refused", 0.9), score(0.0), (score(1.0), score(0.5)))
    assert (refused.mean, refused.worst.value, refused.met) == (0.75, 0.5, False)
    assert refused.columns(2) == [
        "refused",
        "10",
        "≥ 0.9",
        "0.0000 [-0.1000, 0.1000]",
        "0.750",
        "0.500 [0.400, 0.600]",
        "MISSED",
    ]
    kept = FigureResult(Figure("kept", 0.9, higher=False), None, (score(0.5), score(0.8)))
    assert (kept.worst.value, kept.met, kept.columns(2)[-1]) == (0.8, True, "pass")
    reported = FigureResult(Figure("reported"), score(0.1), (score(0.2),))
    assert reported.met is None
    assert reported.columns(1)[-1] == ""


def test_tables_have_a_column_for_each_header() -> None:
    for edited in ((), (score(0.2),), (score(0.2), score(0.4))):
        lines = [FigureResult(Figure("a", 0.5), score(0.1), edited)]
        table = figures_table(lines, len(edited))
        assert len({row.count("|") for row in table.splitlines()}) == 1
