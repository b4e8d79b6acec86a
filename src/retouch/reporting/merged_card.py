"""The card of a merged adapter: its edits, their effects alone and in the sum, and its safety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from retouch.core.formatting import DIRECTION_DONE, metric_title, show_value
from retouch.core.model_names import public_name
from retouch.core.types import Direction, Record
from retouch.evaluation.safety_probe import SafetyProbe
from retouch.reporting.model_card import escape, safety_figures, safety_warning


@dataclass(frozen=True)
class MergedEdit:
    """One edit of a merged adapter.

    Attributes:
        name: the name of its run's folder.
        model: the name of the edited model.
        concept: the name of the concept.
        direction: the direction of the edit.
        weight: by which its update is multiplied.
        records: its metrics alone.
    """

    name: str
    model: str
    concept: str
    direction: Direction
    weight: float
    records: Sequence[Record]


def render_merged_card(
    edits: Sequence[MergedEdit],
    records: Sequence[Record],
    probe: SafetyProbe,
    reasons: Sequence[str | None],
) -> str:
    """Render the card in Markdown, with the front matter of the Hugging Face hub.

    Args:
        edits: what is merged.
        records: the metrics of the sum.
        probe: the safety of base and merged model.
        reasons: those that were given for weakening safety, now or when a run was made.
    """
    model = public_name(edits[0].model)
    given = list(dict.fromkeys(one for one in reasons if one))
    tags = ["retouch", "concept-editing", "lora", *(["safety-weakened"] if given else [])]
    values = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": tags}
    parts = [
        f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()}\n---",
        f"# {escape(model)}: {len(edits)} edits merged",
        safety_warning(" / ".join(given)) if given else "",
        f"A LoRA adapter for **{escape(model)}**: the sum of these edits. It was made with "
        "Retouch; `retouch merge` sums adapters exactly.",
        "\n".join(
            f"- {escape(public_name(one.concept))} {DIRECTION_DONE[one.direction]}, "
            f"weight {one.weight:g}"
            for one in edits
        ),
        "## Results\n\nEach edit alone and the sum, on test data.\n\n" + _table(edits, records),
        safety_figures(probe),
        f"## How to load it\n\n`retouch chat {escape(model)} --adapter THIS_FOLDER`, or "
        "`PeftModel.from_pretrained(base, FOLDER)`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(edits: Sequence[MergedEdit], records: Sequence[Record]) -> str:
    columns: Mapping[str, Sequence[Record]] = {
        **{f"{number}. {one.name}": one.records for number, one in enumerate(edits, start=1)},
        "sum": records,
    }
    lines = [
        "| " + " | ".join(["Metric", "base", *map(escape, columns)]) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for number, record in enumerate(records):
        values = [show_value(record.before.value, record.unit)]
        for measured in columns.values():
            score = measured[number].after or measured[number].before
            values.append(show_value(score.value, record.unit))
        lines.append("| " + " | ".join([escape(metric_title(record)), *values]) + " |")
    return "\n".join(lines)
