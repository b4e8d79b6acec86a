"""The objects of a run as plain JSON values, and back to equal objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from retouch.core.types import Event, Message, Record, Sample, Score, StageEvent, StepEvent


def to_json(value: Any, *, indent: int | None = None, sort: bool = False) -> str:
    """JSON text; numbers that are not finite are refused.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair, as broken data may hold, has no UTF-8 form but an escaped one.
        text = json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort)
    return text


def from_record(record: Record) -> dict[str, Any]:
    """A record as `metrics.json` holds it."""
    return {
        "suite": record.suite,
        "metric": record.metric,
        "unit": record.unit,
        "better": record.better,
        "before": asdict(record.before),
        "after": None if record.after is None else asdict(record.after),
    }


def to_record(values: Mapping[str, Any]) -> Record:
    """The record that `from_record` made these values of."""
    after = values["after"]
    return Record(
        **{
            **values,
            "before": Score(**values["before"]),
            "after": None if after is None else Score(**after),
        }
    )


def from_sample(sample: Sample) -> dict[str, Any]:
    """A sample as a line of `samples.jsonl` holds it."""
    return asdict(sample)


def to_sample(values: Mapping[str, Any]) -> Sample:
    """The sample that `from_sample` made these values of."""
    return Sample(**{**values, "prompt": tuple(Message(**turn) for turn in values["prompt"])})


def from_step(event: StepEvent) -> dict[str, Any]:
    """A round as a line of `events.jsonl` holds it."""
    return {**vars(event), "losses": dict(event.losses)}


def to_step(values: Mapping[str, Any]) -> StepEvent:
    """The round that `from_step` made these values of."""
    return StepEvent(**values)


def from_event(event: Event) -> dict[str, Any]:
    """Any event, with its kind: what `retouch edit --json` prints."""
    if isinstance(event, StageEvent):
        return {"event": "stage", **vars(event)}
    return {"event": "round", **from_step(event)}
