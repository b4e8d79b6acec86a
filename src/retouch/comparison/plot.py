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
# Dark enough for text on white. Further methods repeat the colours with another marker.
COLOURS = ("#2f6f8f", "#5b8c2a", "#7a4f9e", "#a8325e", "#1f8a70", "#8a6d1f", "#4a5a9e", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
# Offsets of a label from its point, in typographic points, the nearest first. They are diagonal,
# so that labels do not cover the error bars.
OFFSETS = tuple(
    (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
    for radius in (13, 20, 28, 38, 52, 68, 86, 106, 130)
    for angle in (45, -45, 135, -135, 70, -70, 20, -20)
)
FAR = 24  # distance in typographic points from which a line connects a label to its point


def render_plot(
    objective: Objective, rows: Sequence[SummaryRow], titles: Mapping[str, str]
) -> bytes:
    """Render a PNG with one panel for each number of examples; better is up and to the left.

    Error bars reach from the lowest to the highest seed, and the stepped line is the Pareto front
    of the means. Methods without a completed seed are left out.

    Args:
        objective: the effect and the drift.
        rows: the summary of the methods.
        titles: the titles of the methods by id.
    """
    # Not pyplot, which keeps global state and needs a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(row.num_examples for row in rows))
    figure = Figure(figsize=(10, 5.4 * len(counts)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # the canvas measures the labels
    axes = figure.subplots(len(counts), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    styles = _styles(list(dict.fromkeys(row.method for row in rows)))
    panels = [
        (axis, [row for row in rows if row.num_examples == count and row.metrics])
        for axis, count in zip(axes, counts, strict=True)
    ]
    for (axis, panel_rows), count in zip(panels, counts, strict=True):
        _draw_axes(axis, objective, panel_rows)
        axis.set_title(f"{count} examples", fontsize=11, color=INK, loc="left")
        for row in panel_rows:
            _draw_point(axis, objective, row, styles[row.method])
    for axis, panel_rows in panels:  # after all points, which may have widened the shared axis
        _draw_front(axis, objective, panel_rows)
    axes[-1].set_xlabel("drift: KL to the base, nats a token", fontsize=11, color=INK)
    figure.draw_without_rendering()  # labels are placed by the positions of the final layout
    figure.set_layout_engine("none")
    for axis, panel_rows in panels:
        _draw_labels(figure, axis, objective, panel_rows, styles, titles)
    buffer = io.BytesIO()
    # Without the version of matplotlib, so that equal results give equal files.
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method."""
    styles = {
        method: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, method in enumerate(methods)
    }
    return {**styles, REFERENCE: (MARK, "*")}


def _stats(objective: Objective, row: SummaryRow) -> tuple[SeedStats, SeedStats]:
    """Drift and effect."""
    return row.metrics[metric_key(objective.drift)], row.metrics[metric_key(objective.effect)]


def _means(objective: Objective, row: SummaryRow) -> tuple[float, float]:
    drift, effect = _stats(objective, row)
    return drift.mean, effect.mean


def _draw_axes(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> None:
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
    if objective.better == "lower":
        axis.yaxis.set_inverted(True)
    axis.tick_params(labelsize=10, colors=INK, length=3)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(SOFT)


def _draw_point(axis: Any, objective: Objective, row: SummaryRow, style: tuple[str, str]) -> None:
    drift, effect = _stats(objective, row)
    axis.errorbar(
        [drift.mean],
        [effect.mean],
        xerr=[[drift.mean - drift.low], [drift.high - drift.mean]],
        yerr=[[effect.mean - effect.low], [effect.high - effect.mean]],
        color=style[0],
        fmt=style[1],
        markersize=14 if row.method == REFERENCE else 7,
        elinewidth=1.1,
        capsize=2.5,
        alpha=0.95,
        zorder=4 if row.method == REFERENCE else 3,
    )


def _draw_front(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> None:
    means = [_means(objective, row) for row in rows]
    front = pareto_front(means, lambda mean: (mean[0], objective.gain(mean[1])))
    if not front:
        return
    front.append((axis.get_xlim()[1], front[-1][1]))
    drifts, effects = zip(*front, strict=True)
    axis.plot(drifts, effects, color=SOFT, linewidth=1.2, drawstyle="steps-post", zorder=1)
    axis.annotate(
        "Pareto front",
        front[-1],
        (-4, -4),
        textcoords="offset points",
        fontsize=9,
        color=SOFT,
        horizontalalignment="right",
        verticalalignment="top",
    )


def _draw_labels(
    figure: Any,
    axis: Any,
    objective: Objective,
    rows: Sequence[SummaryRow],
    styles: Mapping[str, tuple[str, str]],
    titles: Mapping[str, str],
) -> None:
    """Label each point at the first offset where the label covers neither a point nor a label."""
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.transforms import Bbox

    renderer, panel = figure.canvas.get_renderer(), axis.get_window_extent()
    at = {row.method: axis.transData.transform(_means(objective, row)) for row in rows}
    occupied = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in at.values()]
    for method in sorted(at, key=lambda id: (-at[id][1], -at[id][0])):  # from the top right
        colour = styles[method][0]
        label = axis.annotate(
            titles.get(method, method),
            at[method],
            OFFSETS[0],
            xycoords="figure pixels",
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6},
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
            fontsize=10.5,
            fontweight="bold" if method == REFERENCE else "normal",
            color=colour,
            verticalalignment="center",
            zorder=5,
        )
        for offset in OFFSETS:
            label.set_position(offset)
            label.set_horizontalalignment("left" if offset[0] >= 0 else "right")
            box = _text_box(label, renderer)
            inside = box.x0 >= panel.x0 and box.x1 <= panel.x1
            inside = inside and box.y0 >= panel.y0 and box.y1 <= panel.y1
            if inside and not any(box.overlaps(other) for other in occupied):
                break
        occupied.append(box)
        label.arrow_patch.set_visible(math.hypot(*offset) > FAR)


def _text_box(label: Any, renderer: Any) -> Any:
    """The extent of a label without the line to its point."""
    from matplotlib.text import Text

    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer).padded(2)
