"""The report of an edit: one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retouch.concepts.concept import Concept
from retouch.core import formatting, serialization
from retouch.core.config import EditConfig
from retouch.core.model_names import public_name
from retouch.core.types import Record, RoundEvent, Sample
from retouch.reporting.plots import recovery_plot, training_plot
from retouch.reporting.safety_gate import weakens

MAX_PAIRS = 12  # pairs of responses in a report


class Pair(NamedTuple):
    """The base and the edited model's responses to the same prompt."""

    base: Sample
    edited: Sample


@dataclass(frozen=True)
class FinishedEdit:
    """What a reporter receives.

    Attributes:
        config: the resolved configuration.
        concept: what was edited.
        records: the metrics, before and after; may be empty.
        samples: the generations that they are computed from.
        events: the rounds of the training.
        provenance: the contents of `run.json`.
    """

    config: EditConfig
    concept: Concept
    records: Sequence[Record]
    samples: Sequence[Sample]
    events: Sequence[RoundEvent]
    provenance: Mapping[str, Any]


def render_report(
    config: EditConfig,
    concept: Concept,
    records: Sequence[Record],
    samples: Sequence[Sample],
    events: Sequence[RoundEvent],
    provenance: Mapping[str, Any],
) -> str:
    """Render the report as a self-contained HTML page; all texts of models and users are escaped.

    The concept's examples are not used, `records` and `events` may be empty, and `provenance` is
    the contents of `run.json`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    layers: dict[str, Any] = {"adapted": (), "read": (), "recovery": {}, "reason": ""}
    layers |= provenance.get("layers") or {}
    best = next((event for event in reversed(events) if event.best), None)
    return environment.get_template("report.html.jinja").render(
        config=config.model_copy(update={"model": public_name(config.model)}),
        concept=concept,
        records=records,
        headline=headline(concept, records),
        pairs=choose_pairs(samples),
        events=events,
        best=best,
        provenance=serialization.to_json(dict(provenance), indent=2, sort=True),
        layers=layers,
        outcome={"status": "", "text": "", **(provenance.get("outcome") or {})},
        training=training_plot(events, best, config.train.max_drift) if events else None,
        recovery=recovery_plot(layers["recovery"], layers["adapted"])
        if layers["recovery"]
        else None,
        weakening=weakens(config.direction, concept),
        formatting=formatting,
    )


def headline(concept: Concept, records: Sequence[Record]) -> Record | None:
    """The first metric that the concept declares on source examples, or else the first measured."""
    source = {label for spec in concept.directions.values() for label in spec.source}
    by_name = {(record.suite, record.metric): record for record in records}
    for metric in concept.metrics:
        name = (metric.suite, metric.metric)
        if metric.labels and set(metric.labels) <= source and name in by_name:
            return by_name[name]
    return records[0] if records else None


def pair_samples(samples: Sequence[Sample]) -> list[Pair]:
    """Pair the two models' responses to the same prompt, in the order of the samples."""
    base = {_key(sample): sample for sample in samples if sample.model == "base"}
    return [
        Pair(other, sample)
        for sample in samples
        if sample.model == "edited" and (other := base.get(_key(sample))) is not None
    ]


def choose_pairs(samples: Sequence[Sample]) -> list[Pair]:
    """Choose pairs for the report: from every metric in turn, differing responses first."""
    by_metric: dict[tuple[str, str], list[Pair]] = {}
    for pair in pair_samples(samples):
        by_metric.setdefault((pair.edited.suite, pair.edited.metric), []).append(pair)
    queues = [list(_alternate_groups(pairs)) for pairs in by_metric.values()]
    chosen: dict[tuple[Any, ...], Pair] = {}  # by prompt and prefill, each of them once
    for pair in _interleave(queues):
        if len(chosen) < MAX_PAIRS:
            chosen.setdefault((pair.edited.prompt, pair.edited.prefill), pair)
    # In the page the pairs of a metric are together.
    order = {name: i for i, name in enumerate(by_metric)}
    return sorted(chosen.values(), key=lambda pair: order[pair.edited.suite, pair.edited.metric])


def _alternate_groups(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The differing pairs, then the others, each with alternating groups (attack families)."""
    for differs in (True, False):
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            if (pair.base.response != pair.edited.response) is differs:
                groups.setdefault(pair.edited.group, []).append(pair)
        yield from _interleave(groups.values())


def _interleave(queues: Iterable[Sequence[Pair]]) -> Iterator[Pair]:
    """The first pair of every queue, then the second of every queue, and so on."""
    for turn in zip_longest(*queues):
        yield from (pair for pair in turn if pair is not None)


def _key(sample: Sample) -> tuple[Any, ...]:
    return (sample.suite, sample.metric, sample.prompt, sample.prefill, sample.group, sample.entity)
