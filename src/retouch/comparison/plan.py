"""The grid of a comparison: methods x numbers of labels x seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.aim import Aim, find_aim
from retouch.comparison.attempt import check_whole, task_config
from retouch.comparison.tuned import find_tuned, make_settings
from retouch.concepts.catalog import builtin_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.core.types import DIRECTIONS, Concept, Direction
from retouch.evaluation.stress import check_questions
from retouch.methods import catalog

Metrics = Literal["own", "all"]


@dataclass(frozen=True)
class Cell:
    """One method, trained on so many labels with one seed."""

    method: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.method}-{self.labels}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.labels} labels, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, and how. It holds no model, and travels to other processes.

    Attributes:
        model: what the user calls the model.
        loading: options of `models.load.load`.
        concept: what is edited.
        name: what the user calls it.
        measured: the concepts whose metrics are measured.
        direction: raise or lower it.
        methods: their ids, in the order of the tables.
        labels: numbers of labelled rows, of source and of target each.
        seeds: the seeds.
        settings: of every method, all of its fields as plain values.
        tuned: where the settings come from, in words.
        limit: rows a metric at the most.
        stress: harder questions that every method is asked.
        allow_weakening: the reason for lowering safety.
        source: training rows to move in place of the concept's.
    """

    model: str
    concept: Concept
    name: str
    measured: tuple[Concept, ...]
    direction: Direction
    methods: tuple[str, ...]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]]
    tuned: str
    limit: int | None = None
    stress: tuple[str, ...] = ()
    allow_weakening: str | None = None
    source: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """The cells; those that share their rows come one after the other."""
        return [
            Cell(method, labels, seed)
            for labels in self.labels
            for seed in self.seeds
            for method in self.methods
        ]

    def aim(self) -> Aim:
        """The effect and the drift."""
        return find_aim(self.concept, self.direction)

    def config(self, labels: int, seed: int) -> EditConfig:
        """The configuration of a task."""
        return task_config(
            self.concept,
            self.model,
            self.name,
            self.direction,
            labels,
            seed,
            self.allow_weakening,
            self.source,
        )

    def identity(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell: one that was made of something else is not taken for it."""
        config = self.config(cell.labels, cell.seed)
        return {
            "model": self.model,
            "revision": self.loading.get("revision"),
            "dtype": self.loading.get("dtype", "auto"),
            "concept": [concept.name for concept in self.measured],
            "hash": [concept.hash for concept in self.measured],
            "direction": self.direction,
            "retain": config.retain,
            "forced": [config.forced, config.forced_rows],
            "source": config.source,
            "reply_tokens": config.reply_tokens,
            "limit": self.limit,
            "stress": list(self.stress),
            "settings": dict(self.settings[cell.method]),
        }


def make_plan(
    model: str,
    concept: str,
    direction: Direction,
    methods: Sequence[str],
    seeds: int,
    labels: Sequence[int],
    *,
    tuned: Path | None = None,
    metrics: Metrics = "own",
    limit: int | None = None,
    stress: Sequence[str] = (),
    allow_weakening: str | None = None,
    source: str | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Plan:
    """Check what the user asked for, before anything is loaded.

    Raises:
        ConfigError: a value is wrong, or a method's library is missing; names the option.
        DataError: the concept is not there, or does not say what its effect is.
        RefusedError: the direction weakens safety, and there is no reason for it.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"`--direction`: there is no {direction!r}.", "Take raise or lower.")
    if metrics not in ("own", "all"):
        raise ConfigError(f"`--metrics`: there is no {metrics!r}.", "Take own or all.")
    check_whole("--seeds", seeds, 1)
    if limit is not None:
        check_whole("--limit", limit, 1)
    counts = tuple(dict.fromkeys(check_whole("--labels", count, 2) for count in labels))
    ids = tuple(dict.fromkeys(methods))
    unknown = [id for id in ids if id not in catalog.IDS]
    if unknown or not ids or not counts:
        what = f"there is no method `{unknown[0]}`" if unknown else "none is given"
        option = "--methods" if unknown or not ids else "--labels"
        mend = f"The methods are: {', '.join(catalog.IDS)}." if option == "--methods" else ""
        raise ConfigError(f"`{option}`: {what}.", mend)
    check_questions(stress)
    values, where = find_tuned(concept, direction, tuned)
    pack = load_concept(concept)
    settings = {}
    for id in ids:
        method = catalog.get_method(id)
        chosen = {**method.defaults(pack, direction), **values.get(id, {})}
        settings[id] = make_settings(method, chosen, where).model_dump(mode="json")
    more = builtin_names() if metrics == "all" else []
    plan = Plan(
        model,
        pack,
        concept,
        (pack, *(load_concept(name) for name in more if name != concept)),
        direction,
        ids,
        counts,
        tuple(range(seeds)),
        settings,
        where,
        limit,
        tuple(stress),
        allow_weakening,
        source,
        dict(loading or {}),
    )
    plan.aim()
    plan.config(counts[0], 0)
    return plan
