"""The plot of a comparison: effect against drift, a point for each method."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from retouch.comparison.objective import Objective, metric_key, pareto_front
from retouch.comparison.summary import REFERENCE, SeedStats, SummaryRow
from retouch.core.formatting import words

INK, SOFT, GRID, MARK = "#24323d", "#9aa8b2", "#e6eaed", "#c2571a"
# Further methods repeat the colours with another marker.
COLOURS = ("#2f6f8f", "#5b8c2a", "#7a4f9e", "#a8325e", "#1f8a70", "#8a6d1f", "#4a5a9e", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")


def render_plot(
    objective: Objective, rows: Sequence[SummaryRow], titles: Mapping[str, str]
) -> bytes:
    """Render a PNG with one panel for each number of examples; better is up and to the left.

    Error bars reach from the lowest to the highest seed, and the stepped line is the Pareto front
    of the means. Methods without a completed seed are left out.
    """
    # Not pyplot, which keeps global state and needs a display.
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(row.num_examples for row in rows))
    numbers = {id: i for i, id in enumerate(dict.fromkeys(row.method for row in rows), start=1)}
    measured = [row for row in rows if row.metrics]
    figure = Figure(figsize=(11, 5.4 * len(counts)), dpi=150, layout="constrained")
    axes = figure.subplots(len(counts), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    legend: dict[str, Any] = {}
    for axis, count in zip(axes, counts, strict=True):
        panel = [row for row in measured if row.num_examples == count]
        _draw_axis(axis, objective, measured)
        axis.set_title(f"{count} examples", fontsize=11, color=INK, loc="left")
        legend["Pareto front"] = _draw_front(axis, objective, panel)
        for row in panel:
            number = numbers[row.method]
            label = f"{number}  {titles.get(row.method, row.method)}"
            legend[label] = _draw_point(axis, *_stats(objective, row), row.method, number)
    axes[-1].set_xlabel("drift: KL to the base, nats a token", fontsize=11, color=INK)
    figure.legend(legend.values(), legend, loc="outside right upper", labelcolor=INK, frameon=False)
    buffer = io.BytesIO()
    # Without the version of matplotlib, so that equal results give equal files.
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _stats(objective: Objective, row: SummaryRow) -> tuple[SeedStats, SeedStats]:
    """Drift and effect."""
    return row.metrics[metric_key(objective.drift)], row.metrics[metric_key(objective.effect)]


def _draw_axis(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> None:
    """Draw an axis with limits for the rows of all panels, which share them."""
    drifts = [_stats(objective, row)[0] for row in rows]
    positive = [value for drift in drifts for value in (drift.mean, drift.high) if value > 0]
    # Logarithmic down to the lowest decade and linear from there to 0, where the base model is.
    lowest = max(10 ** math.floor(math.log10(min(positive, default=1e-4))), 1e-6)
    axis.set_xscale("symlog", linthresh=lowest, linscale=0.4)
    axis.set_xlim(left=-0.15 * lowest, right=4 * max(positive, default=1e-3))
    axis.set_ylabel(
        f"{words(objective.effect.metric)} ({objective.better} is better)", fontsize=11, color=INK
    )
    if objective.effect.unit in ("rate", "probability"):
        axis.set_ylim(-0.06, 1.1)
    axis.yaxis.set_inverted(objective.better == "lower")
    axis.tick_params(labelsize=10, colors=INK, length=3)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(SOFT)


def marker_of(method: str, number: int) -> tuple[str, str, int]:
    """Colour, marker and size of a method by its number, from 1; Retouch is a star."""
    if method == REFERENCE:
        return MARK, "*", 14
    return COLOURS[(number - 1) % len(COLOURS)], MARKERS[(number - 1) % len(MARKERS)], 7


def label_point(axis: Any, point: tuple[float, float], number: int, colour: str) -> None:
    """Write the number of a method beside its point."""
    # In one of four directions, so that the numbers of equal points do not cover each other.
    x, y = (1 if number % 4 < 2 else -1), (1 if number % 2 else -1)
    axis.annotate(
        str(number),
        point,
        (6 * x, 8 * y),
        textcoords="offset points",
        color=colour,
        fontsize=9,
        horizontalalignment="left" if x > 0 else "right",
        verticalalignment="center",
    )


def _draw_point(axis: Any, drift: SeedStats, effect: SeedStats, method: str, number: int) -> Any:
    """Draw a method with its number and its error bars; returns the marker for the legend."""
    colour, marker, size = marker_of(method, number)
    bars = axis.errorbar(
        [drift.mean],
        [effect.mean],
        xerr=[[drift.mean - drift.low], [drift.high - drift.mean]],
        yerr=[[effect.mean - effect.low], [effect.high - effect.mean]],
        color=colour,
        fmt=marker,
        markersize=size,
        elinewidth=1.1,
        capsize=2.5,
        alpha=0.95,
        zorder=4 if method == REFERENCE else 3,
    )
    label_point(axis, (drift.mean, effect.mean), number, colour)
    return bars.lines[0]


def _draw_front(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> Any:
    """Draw the Pareto front of the means up to the edge of the panel; returns the line."""
    means = [(drift.mean, effect.mean) for drift, effect in (_stats(objective, r) for r in rows)]
    front = pareto_front(means, lambda mean: (mean[0], objective.gain(mean[1])))
    front += [(axis.get_xlim()[1], effect) for _, effect in front[-1:]]
    drifts, effects = [drift for drift, _ in front], [effect for _, effect in front]
    style = {"color": SOFT, "linewidth": 1.2, "drawstyle": "steps-post", "zorder": 1}
    return axis.plot(drifts, effects, **style)[0]
