"""The grid of a comparison: methods x numbers of examples x seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from retouch.comparison.objective import Objective, find_objective
from retouch.comparison.tuned_settings import find_tuned, make_settings
from retouch.concepts.concept import Concept
from retouch.concepts.hashing import content_hash
from retouch.concepts.registry import concept_for_model, with_builtin
from retouch.core.config import DataConfig, LoadConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.core.options import flatten
from retouch.core.types import DIRECTIONS, Direction
from retouch.evaluation.evaluate import MAX_NEW_TOKENS
from retouch.evaluation.robustness import check_attacks
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.models.load import as_editable, loaded_already, model_name
from retouch.reporting.safety_gate import check_weakening
from retouch.suites.registry import load_suite_concepts

MetricSet = Literal["objective", "concept", "all"]

# The tuned data settings of a concept that every method gets.
TUNED_DATA = ("num_retain", "prefill_tokens", "prefills_per_example", "max_new_tokens")
# The load options that decide a model's outputs.
LOAD_OPTIONS = {"revision", "dtype", "quantize", "chat_template"}
TEMPLATE_OPTIONS = {"chat_template_kwargs", "chat_template_time"}


@dataclass(frozen=True)
class GridPoint:
    """One method, trained on a number of examples with one seed."""

    method: str
    num_examples: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.method}-{self.num_examples}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.num_examples} examples, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """A comparison before it is run. It holds no model, so that it can be sent to other processes.

    Attributes:
        model_identity: the facts that decide the model's outputs, for the result files.
        measured: the concepts whose metrics are measured.
        suites: the public evaluation sets that are measured, with the rows that `limit` left.
        methods: their ids, in the order of the tables.
        more_seeds: the number of seeds of single methods, in place of `seeds`.
        settings: for each method, its settings as nested plain values.
        settings_origin: where the settings come from, in words.
        samples: the number of responses of each point that are kept.
        adapters: the folder that adapters are saved in; None: they are not saved.
        allow_weakening: the reason for saving adapters that weaken safety.
    """

    model: str
    model_identity: Mapping[str, Any]
    load_config: LoadConfig
    concept: Concept
    measured: tuple[Concept, ...]
    suites: tuple[Concept, ...]
    direction: Direction
    methods: tuple[str, ...]
    num_examples: tuple[int, ...]
    seeds: tuple[int, ...]
    more_seeds: Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]]
    settings_origin: str
    limit: int | None
    max_new_tokens: int
    attacks: tuple[str, ...]
    source_filter: str | None
    samples: int
    adapters: Path | None
    allow_weakening: str | None

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds of a method."""
        return tuple(range(self.more_seeds[method])) if method in self.more_seeds else self.seeds

    def points(self) -> list[GridPoint]:
        """The points; those with the same examples follow one another."""
        seeds = {method: self.seeds_of(method) for method in self.methods}
        return [
            GridPoint(method, num_examples, seed)
            for num_examples in self.num_examples
            for seed in sorted({seed for each in seeds.values() for seed in each})
            for method in self.methods
            if seed in seeds[method]
        ]

    def objective(self) -> Objective:
        """The effect and the drift."""
        return find_objective(self.concept, self.direction)

    def data(self, num_examples: int) -> DataConfig:
        """The data settings of a task, the same for every method: those tuned for the concept."""
        tuned = self.concept.settings.get(self.direction, {}).get("data", {})
        return DataConfig(
            **{key: tuned[key] for key in TUNED_DATA if key in tuned},
            num_examples=num_examples,
            source_filter=self.source_filter,
        )

    def identity(self, point: GridPoint) -> dict[str, Any]:
        """What decides the result of a point: a file with another identity is not reused."""
        return {
            **self.model_identity,
            "concepts": {one.name: one.hash for one in (*self.measured, *self.suites)},
            "direction": self.direction,
            "data": self.data(point.num_examples).model_dump(mode="json"),
            "limit": self.limit,
            "max_new_tokens": self.max_new_tokens,
            "attacks": list(self.attacks),
            "settings": dict(self.settings[point.method]),
            **({"samples": self.samples} if self.samples else {}),
        }


def make_grid(
    model: EditableModel | str,
    concept: Concept | str,
    direction: Direction,
    methods: Sequence[str],
    seeds: int,
    num_examples: Sequence[int],
    *,
    more_seeds: Mapping[str, int] | None = None,
    tuned: Path | str | None = None,
    metrics: MetricSet = "concept",
    suites: Sequence[str | Path] = (),
    data_dir: Path | str | None = None,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    attacks: Sequence[str] = (),
    allow_weakening: str | None = None,
    source_filter: str | None = None,
    samples: int = 0,
    adapters: Path | None = None,
    load_config: LoadConfig | None = None,
) -> Grid:
    """Make the grid of a comparison from the arguments of `compare`, before a model is loaded.

    Raises:
        ConfigError: a value is wrong, or a method's library is missing; names the argument.
        DataError: the concept lacks the direction or declares no effect for it; or a suite is wrong
            or its rows are out of reach.
        RefusedError: the direction weakens safety, and no reason was given.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"`direction` must be `raise` or `lower`, got {direction!r}.")
    if metrics not in get_args(MetricSet):
        raise ConfigError(f"`metrics` must be `objective`, `concept` or `all`, got {metrics!r}.")
    check_integer("seeds", seeds, 1)
    for id, number in (more_seeds or {}).items():
        if id not in methods:
            raise ConfigError(
                f"`more_seeds`: the method `{id}` is not compared.",
                f"The methods are: {', '.join(methods)}.",
                code="method-unknown",
            )
        check_integer(f"more_seeds[{id}]", number, 1)
    check_integer("samples", samples, 0)
    check_integer("max_new_tokens", max_new_tokens, 1)
    if limit is not None:
        check_integer("limit", limit, 1)
    for count in num_examples:
        check_integer("num_examples", count, 2)
    for argument, values in (("methods", methods), ("num_examples", num_examples)):
        if not values:
            raise ConfigError(f"`{argument}` is empty.", "Give one value at least.")
    check_attacks(attacks)
    known_as = model_name(model.name if isinstance(model, EditableModel) else model)
    if isinstance(concept, Concept):  # its examples may have been replaced, without a new hash
        concept = replace(concept, hash=content_hash(concept))
    concept = concept_for_model(concept, known_as)
    check_weakening(direction, allow_weakening, concept)
    tuned_values, origin = find_tuned(concept, direction, None if tuned is None else Path(tuned))
    settings = {}
    for id in methods:
        method = registry.get_method(id)
        given = flatten(method.defaults(concept, direction)) | tuned_values.get(id, {})
        settings[id] = make_settings(method, given, origin).model_dump(mode="json")
    name, load_config, fingerprint = model, load_config or LoadConfig(), None
    if isinstance(name, EditableModel):
        fingerprint, load_config, name = _fingerprint(name), name.load_config, name.name
    load_facts = load_config.model_dump(mode="json", include=LOAD_OPTIONS)
    # Only where they are set, so that results of earlier releases are found again.
    further = load_config.model_dump(mode="json", include=TEMPLATE_OPTIONS)
    load_facts |= {name: value for name, value in further.items() if value}
    grid = Grid(
        model=name,
        model_identity={"model": name, **load_facts, "fingerprint": fingerprint},
        load_config=load_config,
        concept=concept,
        measured=_measured(concept, direction, known_as, metrics),
        suites=tuple(load_suite_concepts(suites, data_dir, limit)),
        direction=direction,
        methods=tuple(settings),
        num_examples=tuple(dict.fromkeys(num_examples)),
        seeds=tuple(range(seeds)),
        more_seeds=dict(more_seeds or {}),
        settings=settings,
        settings_origin=origin,
        limit=limit,
        max_new_tokens=max_new_tokens,
        attacks=tuple(attacks),
        source_filter=source_filter,
        samples=samples,
        adapters=adapters,
        allow_weakening=allow_weakening,
    )
    grid.objective()  # raises if there is none
    return grid


def _measured(
    concept: Concept, direction: Direction, model: str, metrics: MetricSet
) -> tuple[Concept, ...]:
    """The concepts whose metrics are measured."""
    if metrics == "all":
        return tuple(with_builtin(concept, model))
    if metrics == "concept":
        return (concept,)
    return (objective_only(concept, find_objective(concept, direction)),)


def objective_only(concept: Concept, objective: Objective) -> Concept:
    """The concept with the metrics of its effect and its drift alone."""
    return replace(concept, metrics=(objective.effect, objective.drift))


def _fingerprint(editable: EditableModel) -> str:
    """SHA-256 of the weights and the chat template of a loaded model, in hexadecimal."""
    weights = "" if editable.sharded else editable.fingerprint
    template = getattr(editable.tokenizer, "chat_template", None)
    return hashlib.sha256(f"{weights}{template}".encode()).hexdigest()


def unedited_model(
    model: Any, tokenizer: Any, load_config: LoadConfig | None
) -> EditableModel | None:
    """The model of a comparison or a study if it is loaded already; None if it is a name.

    Raises:
        ConfigError: there are load options beside a loaded model, or its tokenizer is missing.
        ModelError: an adapter or an intervention acts on it.
    """
    editable = as_editable(model, tokenizer)
    if editable is not None and load_config is not None:
        raise loaded_already("load_config")
    if editable is not None and editable.edited:
        raise ModelError(
            f"{editable.name} is edited already.",
            "Compare methods on the base model.",
            code="model-edited",
        )
    return editable


def check_integer(argument: str, value: object, minimum: int) -> None:
    """Check that an argument is an integer of at least `minimum`.

    Raises:
        ConfigError: it is not; names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"`{argument}` must be an integer of at least {minimum}, got {value!r}.")
