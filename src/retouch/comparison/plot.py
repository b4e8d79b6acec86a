"""The picture of a comparison: effect against drift, a point for every method."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from retouch.comparison.objective import Objective
from retouch.comparison.summary import OURS, Spread, SummaryRow, key
from retouch.core.formatting import words

INK, SOFT, GRID, MARK = "#24323d", "#9aa8b2", "#e6eaed", "#c2571a"
# Dark enough for text on white; methods beyond these take them again, with another marker.
COLOURS = ("#2f6f8f", "#5b8c2a", "#7a4f9e", "#a8325e", "#1f8a70", "#8a6d1f", "#4a5a9e", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
# Where a label may stand, from its point, in points of type: near first, right of it first, and
# beside the lines rather than on them.
PLACES = tuple(
    (math.cos(angle) * reach, math.sin(angle) * reach)
    for reach in (13, 20, 28, 38, 52, 68, 86, 106, 130)
    for angle in (math.radians(turn) for turn in (45, -45, 135, -135, 70, -70, 20, -20))
)

AWAY = 24  # points from which on a thin line leads to a name


def draw(objective: Objective, lines: Sequence[SummaryRow], titles: Mapping[str, str]) -> bytes:
    """A PNG with one panel for each number of labels; good is up and to the left.

    Bars go from the lowest to the highest seed. The stepped line is the Pareto pareto_front: what lies
    below and to the right of it is beaten in both by some method. Methods of which no seed came to
    its end are not there.
    """
    # Not pyplot: it keeps state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(line.labels for line in lines))
    high = 5.4 * len(counts)
    figure = Figure(figsize=(10, high), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # which knows how large a text will be
    axes = figure.subplots(len(counts), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    methods = list(dict.fromkeys(line.method for line in lines))
    for axis, labels in zip(axes, counts, strict=True):
        rows = [line for line in lines if line.labels == labels and line.metrics]
        _style(axis, objective, rows)
        axis.set_title(f"{labels} labels", fontsize=11, color=INK, loc="left")
        for line in rows:
            _point(axis, objective, line, methods.index(line.method))
    for axis, labels in zip(axes, counts, strict=True):  # once all have widened the shared axis
        _front(axis, objective, [line for line in lines if line.labels == labels and line.metrics])
    axes[-1].set_xlabel("drift: KL to the base, nats a token", fontsize=11, color=INK)
    figure.draw_without_rendering()  # what labels must not cover is known only once it is laid out
    figure.set_layout_engine("none")
    for axis, labels in zip(axes, counts, strict=True):
        rows = [line for line in lines if line.labels == labels and line.metrics]
        _name(figure, axis, objective, rows, methods, titles)
    buffer = io.BytesIO()
    # The version of the drawing library has no business in the file: same numbers, same picture.
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _spreads(objective: Objective, line: SummaryRow) -> tuple[Spread, Spread]:
    """Drift and effect."""
    drift = line.metrics[key(objective.drift.suite, objective.drift.metric)]
    return drift, line.metrics[key(objective.effect.suite, objective.effect.metric)]


def _style(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> None:
    drifts = [_spreads(objective, line)[0] for line in rows]
    positive = [value for drift in drifts for value in (drift.mean, drift.high) if value > 0]
    least = 10 ** math.floor(math.log10(min(positive, default=1e-4)))
    # Logarithmic down to the least decade, and then straight to 0, where the unedited model is.
    axis.set_xscale("symlog", linthresh=max(least, 1e-6), linscale=0.4)
    axis.set_xlim(left=-0.15 * max(least, 1e-6), right=4 * max(positive, default=1e-3))
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


def _front(axis: Any, objective: Objective, rows: Sequence[SummaryRow]) -> None:
    """The Pareto pareto_front of the means, as steps."""
    means = sorted(
        (
            (drift.mean, effect.mean)
            for drift, effect in (_spreads(objective, line) for line in rows)
        ),
        key=lambda point: (point[0], -objective.gain(point[1])),
    )
    pareto_front: list[tuple[float, float]] = []
    for point in means:
        if not pareto_front or objective.gain(point[1]) > objective.gain(pareto_front[-1][1]):
            pareto_front.append(point)
    if pareto_front:
        pareto_front.append((axis.get_xlim()[1], pareto_front[-1][1]))
        xs, ys = zip(*pareto_front, strict=True)
        axis.plot(xs, ys, color=SOFT, linewidth=1.2, drawstyle="steps-post", zorder=1)
        axis.annotate(
            "Pareto pareto_front",
            (xs[-1], ys[-1]),
            (-4, -4),
            textcoords="offset points",
            fontsize=9,
            color=SOFT,
            horizontalalignment="right",
            verticalalignment="top",
        )


def _colour(method: str, index: int) -> str:
    return MARK if method == OURS else COLOURS[index % len(COLOURS)]


def _point(axis: Any, objective: Objective, line: SummaryRow, index: int) -> None:
    drift, effect = _spreads(objective, line)
    ours = line.method == OURS
    axis.errorbar(
        [drift.mean],
        [effect.mean],
        xerr=[[drift.mean - drift.low], [drift.high - drift.mean]],
        yerr=[[effect.mean - effect.low], [effect.high - effect.mean]],
        fmt="*" if ours else MARKERS[index % len(MARKERS)],
        color=_colour(line.method, index),
        markersize=14 if ours else 7,
        elinewidth=1.1,
        capsize=2.5,
        alpha=0.95,
        zorder=4 if ours else 3,
    )


def _name(
    figure: Any,
    axis: Any,
    objective: Objective,
    rows: Sequence[SummaryRow],
    methods: Sequence[str],
    titles: Mapping[str, str],
) -> None:
    """Write every method's name beside its point, where it covers neither a point nor a name."""
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.transforms import Bbox

    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    at = {
        line.method: axis.transData.transform([one.mean for one in _spreads(objective, line)])
        for line in rows
    }
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in at.values()]
    inside = axis.get_window_extent(renderer)
    # From the top right on: names stand to the right of their points, and move down.
    for method in sorted(at, key=lambda id: (-at[id][1], -at[id][0])):
        label = axis.annotate(
            titles.get(method, method),
            at[method],
            PLACES[0],
            xycoords="figure pixels",
            textcoords="offset points",
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
            fontsize=10.5,
            fontweight="bold" if method == OURS else "normal",
            color=_colour(method, methods.index(method)),
            zorder=5,
        )
        for x, y in PLACES:
            label.set_position((x, y))
            label.set_horizontalalignment("left" if x >= 0 else "right")
            label.set_verticalalignment("center")
            box = label.get_window_extent(renderer).padded(2)
            free = box.x0 >= inside.x0 and box.x1 <= inside.x1
            free = free and box.y0 >= inside.y0 and box.y1 <= inside.y1
            if free and not any(box.overlaps(other) for other in taken):
                break
        taken.append(label.get_window_extent(renderer).padded(2))
        if math.hypot(x, y) > AWAY:
            _lead(axis, at[method], (x * scale, y * scale), label.get_color())


def _lead(axis: Any, point: Any, offset: tuple[float, float], colour: str) -> None:
    """A thin line from a point to a name that stands further away."""
    axis.annotate(
        "",
        point,
        (point[0] + 0.94 * offset[0], point[1] + 0.94 * offset[1]),
        xycoords="figure pixels",
        textcoords="figure pixels",
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6},
        zorder=2,
    )
