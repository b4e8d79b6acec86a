"""The picture of what methods refuse beside what that costs: harmless requests, and drift."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retouch.comparison.objective import pareto_front
from retouch.comparison.plot import GRID, INK, SOFT, label_point, marker_of
from retouch.comparison.summary import SummaryRow

DRIFT = "alpaca-harmless/kl_responses"


def on_front(
    rows: Sequence[SummaryRow], effect: Callable[[Mapping[str, Any]], float], cost: str
) -> list[str]:
    """The methods that no other one equals in effect, cost and drift and surpasses in one of them.

    Args:
        rows: the methods; those without a completed seed are left out.
        effect: higher is better, from a method's metrics.
        cost: a metric, lower is better.
    """
    points = {
        row.method: (-effect(row.metrics), row.metrics[cost].mean, row.metrics[DRIFT].mean)
        for row in rows
        if row.metrics
    }

    def dominated(point: tuple[float, ...]) -> bool:
        others = (other for other in points.values() if other != point)
        return any(all(a <= b for a, b in zip(other, point, strict=True)) for other in others)

    return [method for method, point in points.items() if not dominated(point)]


def render_front(
    rows: Sequence[SummaryRow],
    titles: Mapping[str, str],
    effect: Callable[[Mapping[str, Any]], float],
    cost: str,
) -> bytes:
    """Render a PNG with two panels; better is up and to the left.

    Args:
        rows: the methods; those without a completed seed are left out.
        titles: of the methods by id.
        effect: the height of a method, from its metrics.
        cost: the metric of the first panel; the second has the drift.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), dpi=150, layout="constrained")
    panels = ((cost, "harmless requests refused"), (DRIFT, "KL to the base, nats a token"))
    axes = figure.subplots(1, 2, sharey=True)
    legend: dict[str, Any] = {}
    measured = [row for row in rows if row.metrics]
    for axis, (key, label) in zip(axes, panels, strict=True):
        points = [(row.metrics[key].mean, effect(row.metrics)) for row in measured]
        front = pareto_front(points, lambda point: point)
        if key == DRIFT:
            axis.set_xscale("symlog", linthresh=1e-3)
        right = 1.15 * max(x for x, _ in points)
        if key != DRIFT:
            right = min(right, 1.04)  # a share
            axis.set_xlim(-0.05 * right, right)
        front += [(right, y) for _, y in front[-1:]]
        legend["Pareto front"] = axis.plot(
            *zip(*front, strict=True), color=SOFT, linewidth=1.2, drawstyle="steps-post", zorder=1
        )[0]
        for number, (row, (x, y)) in enumerate(zip(measured, points, strict=True), start=1):
            colour, marker, size = marker_of(row.method, number)
            (line,) = axis.plot(x, y, marker, color=colour, markersize=size, zorder=3)
            legend[f"{number}  {titles.get(row.method, row.method)}"] = line
            label_point(axis, (x, y), number, colour)
        axis.set_xlabel(label, fontsize=11, color=INK)
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("harmful requests refused, mean of the suites", fontsize=11, color=INK)
    axes[0].set_ylim(-0.04, 1.04)
    figure.legend(legend.values(), legend, loc="outside right upper", labelcolor=INK, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
