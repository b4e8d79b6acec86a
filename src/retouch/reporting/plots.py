"""The report's plots, as PNG data URLs that the page contains."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retouch.core.formatting import by_layer
from retouch.core.types import RoundEvent

INK, SOFT, ACCENT, MARK = "#24323d", "#9aa8b2", "#2f6f8f", "#c2571a"


def training_plot(events: Sequence[RoundEvent], best: RoundEvent | None, max_drift: float) -> str:
    """Discriminator accuracy, validation score and drift over the rounds; the best is marked."""
    rounds = [event.round for event in events]
    curves = (
        ("Discriminator accuracy", [event.discriminator_accuracy for event in events]),
        ("Validation score", [event.validation_score for event in events]),
        ("Drift, nats a token", [event.drift for event in events]),
    )
    figure, axes = _figure(2.9, "round", [title for title, _ in curves])
    for axis, (_, values) in zip(axes, curves, strict=True):
        axis.plot(rounds, values, color=ACCENT, linewidth=1.8, marker="o", markersize=3.2)
        if best is not None:
            axis.axvline(best.round, color=MARK, linewidth=1, alpha=0.45, zorder=0)
            axis.plot(best.round, values[rounds.index(best.round)], "o", color=MARK, markersize=6)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].axhline(0.5, color=SOFT, linewidth=1, linestyle="--")
    axes[0].annotate("chance", (rounds[0], 0.505), fontsize=7, color=SOFT, va="bottom")
    axes[0].set_ylim(min(0.4, *curves[0][1]) - 0.02, 1.03)
    axes[2].axhline(max_drift, color=SOFT, linewidth=1, linestyle="--")
    axes[2].annotate("maximum", (rounds[0], max_drift), fontsize=7, color=SOFT, va="bottom")
    axes[2].set_ylim(bottom=0)
    return _png(figure)


def recovery_plot(recovery: Mapping[str, float], adapted: Collection[int]) -> str:
    """The recovery by causal patching of every layer; the adapted layers are marked."""
    figure, (axis,) = _figure(2.4, "layer", ["Recovery by layer"])
    marked = {str(layer) for layer in adapted}
    names, values = zip(*by_layer(recovery), strict=True)
    colours = [MARK if name in marked else SOFT for name in names]
    axis.bar(range(len(names)), values, color=colours, width=0.7)
    axis.set_xticks(range(len(names)), names)
    axis.axhline(0, color=SOFT, linewidth=0.8)
    return _png(figure)


def _figure(height: float, label: str, titles: Sequence[str]) -> tuple[Any, Any]:
    # pyplot is avoided: it keeps global state and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        axis.set_xlabel(label, fontsize=8, color=INK)
        axis.tick_params(labelsize=8, colors=INK, length=3)
        axis.grid(axis="y", color="#e6eaed", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(SOFT)
    return figure, axes


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    # Without matplotlib's version in the file, the same run gives the same report.
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
