"""How scores and texts are written for people, everywhere the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from retouch.core.types import Record, Sample, Score

ChangeKind = Literal["better", "worse", "changed", "unclear", ""]

MIN_P = 0.0001  # smaller p-values are shown as `< 0.0001`

# A terminal obeys control characters, and shows text in another order after marks of direction.
# Each is shown as one other character, so that positions in the text stay the same.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_VISIBLE |= dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F)), 0xFFFD)
_VISIBLE |= dict.fromkeys(range(0x2066, 0x206A), 0xFFFD)

DIRECTION_DONE = {"raise": "raised", "lower": "lowered"}


def visible(text: str) -> str:
    """A text for a terminal, with control characters made visible instead of obeyed."""
    return text.translate(_VISIBLE)


def show_value(value: float, unit: str) -> str:
    """A rate as a percentage, anything else to three digits."""
    if unit == "rate":
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}"


def show_p(p: float) -> str:
    """A p-value to four digits."""
    return f"{p:.4f}" if p >= MIN_P else f"< {MIN_P}"


def show_interval(score: Score, unit: str) -> str:
    """The 95 % interval, without the unit where the value already has it."""
    # A dash before a minus sign would be hard to read.
    to = "–" if score.low >= 0 else " to "
    if unit == "rate":
        return f"{100 * score.low:.1f}{to}{100 * score.high:.1f}"
    return f"{show_value(score.low, unit)}{to}{show_value(score.high, unit)}"


def show_score(score: Score, unit: str) -> str:
    """A value with its 95 % interval in brackets."""
    return f"{show_value(score.value, unit)} ({show_interval(score, unit)})"


def score_columns(score: Score | None, unit: str) -> tuple[str, str]:
    """A value and its 95 % interval as columns of a table; empty where there is no score."""
    return (
        ("", "") if score is None else (show_value(score.value, unit), show_interval(score, unit))
    )


def show_response(sample: Sample) -> str:
    """A response as text, with a mark where it was cut at the maximum length."""
    return f"{sample.response}…" if sample.truncated else sample.response or "(empty)"


def metric_title(record: Record) -> str:
    """A metric's name as words, with its unit unless it is a rate."""
    return words(record.metric) + (f" ({record.unit})" if record.unit not in ("", "rate") else "")


def change(record: Record) -> ChangeKind:
    """What the edit did to a metric: `unclear` where the two intervals overlap."""
    before, after = record.before, record.after
    if after is None or before.value == after.value:
        return ""
    if before.low <= after.high and after.low <= before.high:
        return "unclear"
    if record.better == "none":
        return "changed"
    return "better" if (after.value > before.value) == (record.better == "higher") else "worse"


def by_layer(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Scores of layers in the layers' order, which JSON with sorted keys loses beyond nine."""
    return sorted(scores.items(), key=lambda pair: int(pair[0]))


def words(name: str) -> str:
    """A metric's name as words: `attack_refusal` is `attack refusal`."""
    return name.replace("_", " ")
