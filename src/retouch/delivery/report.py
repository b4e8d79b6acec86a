"""The report: one HTML file that opens anywhere, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retouch.core import plain
from retouch.core.config import EditConfig
from retouch.core.types import Concept, Message, Record, Sample, StepEvent
from retouch.delivery import numbers
from retouch.delivery.gate import weakens
from retouch.delivery.pictures import game_picture, layers_picture

SHOWN = 12


@dataclass(frozen=True)
class Pair:
    """The base and the edited model's replies to the same prompt."""

    suite: str
    metric: str
    prompt: tuple[Message, ...]
    prefill: str
    base: Sample
    edited: Sample

    @property
    def differs(self) -> bool:
        """Whether the edit changed the reply."""
        return self.base.reply != self.edited.reply


def render_report(
    config: EditConfig,
    concept: Concept,
    records: Sequence[Record],
    samples: Sequence[Sample],
    events: Sequence[StepEvent],
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
    environment.filters["words"] = numbers.words
    layers = provenance.get("layers")
    where: dict[str, Any] = {"chosen": (), "taps": (), "scores": {}, "why": ""}
    where |= layers if isinstance(layers, Mapping) else {}
    return environment.get_template("report.html.jinja").render(
        config=config,
        concept=concept,
        records=records,
        headline=numbers.headline(concept, records),
        pairs=choose_pairs(samples),
        events=events,
        best=next((event for event in reversed(events) if event.best), None),
        provenance=plain.to_json(dict(provenance), indent=2, sort=True),
        layers=where,
        game=game_picture(events, config.drift_guard) if events else None,
        patching=layers_picture(where["scores"], where["chosen"]) if where["scores"] else None,
        weakening=weakens(config, concept),
        done=numbers.DIRECTION_DONE[config.direction],
        show_value=numbers.show_value,
        show_interval=numbers.show_interval,
        change=numbers.change,
    )


def pair_samples(samples: Sequence[Sample]) -> list[Pair]:
    """Bring the two models' replies to the same prompt together, in the samples' order."""
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
    """A few pairs to show: every metric in turn, those first whose reply the edit changed."""
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
