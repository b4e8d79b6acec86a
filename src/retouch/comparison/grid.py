"""The grid of a comparison: methods x numbers of labels x seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.method_run import check_whole, task_config
from retouch.comparison.objective import Objective, find_objective
from retouch.comparison.tuned_settings import find_tuned, make_settings
from retouch.concepts.concept import Concept
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.core.types import DIRECTIONS, Direction
from retouch.evaluation.robustness import check_attacks
from retouch.methods import registry

Metrics = Literal["own", "all"]


@dataclass(frozen=True)
class GridPoint:
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
class Grid:
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
        robustness: robustness_records attacks that every method is asked.
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
    robustness: tuple[str, ...] = ()
    allow_weakening: str | None = None
    source: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)

    def points(self) -> list[GridPoint]:
        """The points; those that share their rows come one after the other."""
        return [
            GridPoint(method, labels, seed)
            for labels in self.labels
            for seed in self.seeds
            for method in self.methods
        ]

    def objective(self) -> Objective:
        """The effect and the drift."""
        return find_objective(self.concept, self.direction)

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

    def identity(self, point: GridPoint) -> dict[str, Any]:
        """All that decides a point: one that was made of something else is not taken for it."""
        config = self.config(point.labels, point.seed)
        return {
            "model": self.model,
            "revision": self.loading.get("revision"),
            "dtype": self.loading.get("dtype", "auto"),
            "concept": [concept.name for concept in self.measured],
            "hash": [concept.hash for concept in self.measured],
            "direction": self.direction,
            "retain": config.data.num_retain,
            "forced": [config.data.prefill_tokens, config.data.prefills_per_example],
            "source": config.data.source_filter,
            "response_tokens": config.data.max_new_tokens,
            "limit": self.limit,
            "robustness": list(self.robustness),
            "settings": dict(self.settings[point.method]),
        }


def make_grid(
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
    robustness: Sequence[str] = (),
    allow_weakening: str | None = None,
    source: str | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Grid:
    """Check what the user asked for, before anything is editable.

    Raises:
        ConfigError: a value is wrong, or a method's library is missing; names the option.
        DataError: the concept is not there, or does not progress what its effect is.
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
    unknown = [id for id in ids if id not in registry.IDS]
    if unknown or not ids or not counts:
        what = f"there is no method `{unknown[0]}`" if unknown else "none is given"
        option = "--methods" if unknown or not ids else "--labels"
        hint = f"The methods are: {', '.join(registry.IDS)}." if option == "--methods" else ""
        raise ConfigError(f"`{option}`: {what}.", hint)
    check_attacks(robustness)
    values, where = find_tuned(concept, direction, tuned)
    pack = load_concept(concept)
    settings = {}
    for id in ids:
        method = registry.get_method(id)
        chosen = {**method.defaults(pack, direction), **values.get(id, {})}
        settings[id] = make_settings(method, chosen, where).model_dump(mode="json")
    more = builtin_names() if metrics == "all" else []
    grid = Grid(
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
        tuple(robustness),
        allow_weakening,
        source,
        dict(loading or {}),
    )
    grid.objective()
    grid.config(counts[0], 0)
    return grid
