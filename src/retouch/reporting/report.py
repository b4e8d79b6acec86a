"""The report: one HTML file that opens anywhere, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retouch.concepts.concept import Concept
from retouch.core import formatting, serialization
from retouch.core.config import EditConfig
from retouch.core.types import Message, Record, RoundEvent, Sample
from retouch.reporting.plots import game_picture, layers_picture
from retouch.reporting.safety_gate import weakens

SHOWN = 12


@dataclass(frozen=True)
class Pair:
    """The base and the edited model's responses to the same prompt."""

    suite: str
    metric: str
    prompt: tuple[Message, ...]
    prefill: str
    base: Sample
    edited: Sample

    @property
    def differs(self) -> bool:
        """Whether the edit changed the response."""
        return self.base.response != self.edited.response


def render_report(
    config: EditConfig,
    concept: Concept,
    records: Sequence[Record],
    samples: Sequence[Sample],
    events: Sequence[RoundEvent],
    provenance: Mapping[str, Any],
) -> str:
    """The report as a self-contained HTML page; all that models and users wrote is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = formatting.words
    layers = provenance.get("layers")
    where: dict[str, Any] = {"adapted": (), "read": (), "recovery": {}, "reason": ""}
    where |= layers if isinstance(layers, Mapping) else {}
    return environment.get_template("report.html.jinja").render(
        config=config,
        concept=concept,
        records=records,
        headline=headline(concept, records),
        pairs=choose_pairs(samples),
        events=events,
        best=next((event for event in reversed(events) if event.best), None),
        provenance=serialization.to_json(dict(provenance), indent=2, sort=True),
        layers=where,
        game=game_picture(events, config.train.max_drift) if events else None,
        patching=layers_picture(where["recovery"], where["adapted"]) if where["recovery"] else None,
        weakening=weakens(config.direction, concept),
        done=formatting.DIRECTION_DONE[config.direction],
        show_value=formatting.show_value,
        show_interval=formatting.show_interval,
        change=formatting.change,
    )


def headline(concept: Concept, records: Sequence[Record]) -> Record | None:
    """The record that says in one number whether the edit worked.

    It is the first metric that the concept declares on the rows that the edit moves, or else the
    first that was measured.
    """
    moved = {label for side in concept.directions.values() for label in side.source}
    wanted = [
        (spec.suite, spec.metric)
        for spec in concept.metrics
        if spec.labels and set(spec.labels) <= moved
    ]
    by_name = {(record.suite, record.metric): record for record in records}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    return records[0] if records else None


def pair_samples(samples: Sequence[Sample]) -> list[Pair]:
    """Bring the two models' responses to the same prompt together, in the samples' order."""
    base: dict[tuple[Any, ...], Sample] = {}
    pairs = []
    for sample in samples:
        if sample.model == "base":
            base[_key(sample)] = sample
    for sample in samples:
        if sample.model == "edited" and (other := base.get(_key(sample))) is not None:
            pairs.append(
                Pair(sample.suite, sample.metric, sample.prompt, sample.prefill, other, sample)
            )
    return pairs


def choose_pairs(samples: Sequence[Sample], limit: int = SHOWN) -> list[Pair]:
    """A few pairs to show: every metric in turn, those first whose response the edit changed."""
    by_metric: dict[tuple[str, str], list[Pair]] = {}
    for pair in pair_samples(samples):
        by_metric.setdefault((pair.suite, pair.metric), []).append(pair)
    queues = [
        list(_spread(sorted(pairs, key=lambda p: not p.differs))) for pairs in by_metric.values()
    ]
    turns = [pair for turn in zip_longest(*queues) for pair in turn if pair is not None]
    shown: list[Pair] = []
    seen: set[tuple[Any, ...]] = set()
    for pair in turns:
        asked = (pair.prompt, pair.prefill)
        if asked not in seen and len(shown) < limit:
            seen.add(asked)
            shown.append(pair)
    # Together again what belongs together, for the reader.
    order = {name: i for i, name in enumerate(by_metric)}
    return sorted(shown, key=lambda pair: order[pair.suite, pair.metric])


def _spread(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The same pairs, the groups (such as attack families) taking turns within each half."""
    for half in (True, False):
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            if pair.differs is half:
                groups.setdefault(pair.edited.group, []).append(pair)
        for turn in zip_longest(*groups.values()):
            yield from (pair for pair in turn if pair is not None)


def _key(sample: Sample) -> tuple[Any, ...]:
    return (sample.suite, sample.metric, sample.prompt, sample.prefill, sample.group, sample.entity)
