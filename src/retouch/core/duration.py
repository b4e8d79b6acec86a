"""Spans of time, written for people."""

from __future__ import annotations

UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def time_text(seconds: float) -> str:
    """Seconds for people: an estimate needs no more than two figures."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
