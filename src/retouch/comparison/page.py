"""`compare.md`: the tables of a comparison, with what one has to know to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retouch.comparison.aim import Aim
from retouch.comparison.cell import Result
from retouch.comparison.plan import Plan
from retouch.comparison.summary import Contrast, Line
from retouch.comparison.table import columns, make_table, markdown, other_columns
from retouch.delivery.numbers import DIRECTION_DONE, words


def render_page(
    plan: Plan,
    aim: Aim,
    results: Sequence[Result],
    lines: Sequence[Line],
    contrasts: Sequence[Contrast],
    titles: Mapping[str, str],
) -> str:
    """The page: for every number of labels the table, and the metrics that are not in it."""
    concept = plan.concept
    shown = columns(aim, concept, plan.direction)
    others = other_columns(results, shown)
    parts = [
        f"# {concept.title}, {DIRECTION_DONE[plan.direction]}: methods compared on {plan.model}\n",
        _read_me(plan, aim, bool(contrasts)),
        "![Effect against drift](compare.png)\n",
    ]
    for labels in plan.labels:
        parts.append(f"## {labels} labels\n")
        parts.append(markdown(make_table(labels, lines, shown, contrasts, titles)))
        if others:
            parts.append(f"### The other metrics, {labels} labels\n")
            parts.append(markdown(make_table(labels, lines, others, (), titles, seconds=False)))
    return "\n".join(parts)


def _read_me(plan: Plan, aim: Aim, tested: bool) -> str:
    seeds = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "one seed"
    rows = "" if plan.limit is None else f", the first {plan.limit} rows a metric"
    text = (
        f"Means over {seeds} on the test split{rows}; the effect is {words(aim.effect.metric)}, "
        f"{aim.better} is better. Every method got the same rows and the same labels, of each "
        f"side as many as the heading says. Settings: {plan.tuned}. Seconds are the method's own, "
        "without the measurement. Bold is the best; the unedited model takes no part in that.\n"
    )
    if tested:
        text += (
            "\np is two-sided, of the difference from Retouch in effect and in drift: a paired "
            "bootstrap over rows and seeds, adjusted after Holm for the methods of the table.\n"
        )
    return text
