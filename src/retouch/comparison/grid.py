"""The grid of a comparison: methods x numbers of examples x seeds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retouch.comparison.objective import Objective, find_objective
from retouch.comparison.tuned_settings import find_tuned, make_settings
from retouch.concepts.concept import Concept, content_hash
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config import DataConfig, LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.options import flatten
from retouch.core.types import DIRECTIONS, Direction
from retouch.evaluation.robustness import check_attacks
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.reporting.safety_gate import check_weakening

MetricSet = Literal["concept", "all"]

# The tuned data settings of a concept that every method gets.
TUNED_DATA = ("num_retain", "prefill_tokens", "prefills_per_example", "max_new_tokens")
# The load options that decide a model's outputs.
LOAD_OPTIONS = {"revision", "dtype", "quantize", "chat_template"}


@dataclass(frozen=True)
class GridPoint:
    """One method, trained on a number of examples with one seed.

    Attributes:
        method: the id of the method.
        num_examples: labelled source examples, and as many target examples.
        seed: the random seed.
    """

    method: str
    num_examples: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its result file, without the suffix."""
        return f"{self.method}-{self.num_examples}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.num_examples} examples, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """A comparison before it is run. It holds no model, so that it can be sent to other processes.

    Attributes:
        model: the name of the model.
        model_identity: the facts that decide the model's outputs, for the result files.
        load_config: how a model that is given by its name is loaded.
        concept: the concept that is edited.
        measured: the concepts whose metrics are measured.
        direction: whether the concept is raised or lowered.
        methods: the ids of the methods, in the order of the tables.
        num_examples: the numbers of examples.
        seeds: the seeds.
        settings: for each method, all of its settings as nested plain values.
        settings_origin: where the settings come from, in words.
        limit: maximum number of examples per metric.
        attacks: robustness attacks that every method is evaluated against.
        source_filter: training examples that replace the concept's source, as in `DataConfig`.
    """

    model: str
    model_identity: Mapping[str, Any]
    load_config: LoadConfig
    concept: Concept
    measured: tuple[Concept, ...]
    direction: Direction
    methods: tuple[str, ...]
    num_examples: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]]
    settings_origin: str
    limit: int | None = None
    attacks: tuple[str, ...] = ()
    source_filter: str | None = None

    def points(self) -> list[GridPoint]:
        """The points; those with the same examples follow one another."""
        return [
            GridPoint(method, num_examples, seed)
            for num_examples in self.num_examples
            for seed in self.seeds
            for method in self.methods
        ]

    def objective(self) -> Objective:
        """The effect and the drift."""
        return find_objective(self.concept, self.direction)

    def data(self, num_examples: int) -> DataConfig:
        """The data settings of a task, the same for every method."""
        return data_config(self.concept, self.direction, num_examples, self.source_filter)

    def identity(self, point: GridPoint) -> dict[str, Any]:
        """Everything that decides the result of a point, as plain values.

        A result file with another identity is not reused.
        """
        return {
            **self.model_identity,
            "concepts": {concept.name: concept.hash for concept in self.measured},
            "direction": self.direction,
            "data": self.data(point.num_examples).model_dump(mode="json"),
            "limit": self.limit,
            "attacks": list(self.attacks),
            "settings": dict(self.settings[point.method]),
        }


def make_grid(
    model: str,
    concept: Concept,
    direction: Direction,
    methods: Sequence[str],
    seeds: int,
    num_examples: Sequence[int],
    *,
    tuned: Path | None = None,
    metrics: MetricSet = "concept",
    limit: int | None = None,
    attacks: Sequence[str] = (),
    allow_weakening: str | None = None,
    source_filter: str | None = None,
    load_config: LoadConfig | None = None,
    editable: EditableModel | None = None,
) -> Grid:
    """Make the grid of a comparison and check its settings before a model is loaded.

    The arguments are those of `compare`; a model that is loaded already is `editable`, and `model`
    its name.

    Raises:
        ConfigError: a value is wrong, or a method's library is missing; names the argument.
        DataError: the concept lacks the direction or declares no effect for it.
        RefusedError: the direction weakens safety, and no reason was given.
    """
    check_direction(direction)
    if metrics not in ("concept", "all"):
        raise ConfigError(f"`metrics` must be `concept` or `all`, got {metrics!r}.")
    check_integer("seeds", seeds, 1)
    if limit is not None:
        check_integer("limit", limit, 1)
    for count in num_examples:
        check_integer("num_examples", count, 2)
    for argument, values in (("methods", methods), ("num_examples", num_examples)):
        if not values:
            raise ConfigError(f"`{argument}` is empty.", "Give one value at least.")
    check_attacks(attacks)
    for id in methods:
        if id not in registry.method_ids():
            raise ConfigError(
                f"`methods`: there is no method `{id}`.",
                f"The methods are: {', '.join(registry.method_ids())}.",
                code="method-unknown",
            )
    check_weakening(direction, allow_weakening, concept)
    settings, origin = _settings(concept, direction, methods, tuned)
    others = builtin_names() if metrics == "all" else []
    load_config = load_config or LoadConfig()
    grid = Grid(
        model=model,
        model_identity=model_identity(model, load_config, editable),
        load_config=load_config,
        concept=concept,
        measured=(concept, *(load_concept(name) for name in others if name != concept.name)),
        direction=direction,
        methods=tuple(dict.fromkeys(methods)),
        num_examples=tuple(dict.fromkeys(num_examples)),
        seeds=tuple(range(seeds)),
        settings=settings,
        settings_origin=origin,
        limit=limit,
        attacks=tuple(attacks),
        source_filter=source_filter,
    )
    grid.objective()  # raises if there is none
    return grid


def _settings(
    concept: Concept, direction: Direction, methods: Sequence[str], tuned: Path | None
) -> tuple[dict[str, dict[str, Any]], str]:
    """The settings of the methods as plain values, and where they come from."""
    values, origin = find_tuned(concept, direction, tuned)
    settings = {}
    for id in methods:
        method = registry.get_method(id)
        given = flatten(method.defaults(concept, direction)) | values.get(id, {})
        settings[id] = make_settings(method, given, origin).model_dump(mode="json")
    return settings, origin


def data_config(
    concept: Concept, direction: Direction, num_examples: int, source_filter: str | None = None
) -> DataConfig:
    """The data settings that every method gets: those tuned for the concept, with these values."""
    tuned = concept.settings.get(direction, {}).get("data", {})
    return DataConfig(
        **{key: tuned[key] for key in TUNED_DATA if key in tuned},
        num_examples=num_examples,
        source_filter=source_filter,
    )


def as_concept(concept: Concept | str) -> Concept:
    """The concept of a name or a path; a `Concept` object with its hash brought up to date.

    Raises:
        DataError: the concept does not exist or its files are wrong.
    """
    if isinstance(concept, str):
        return load_concept(concept)
    return dataclasses.replace(concept, hash=content_hash(concept))


def model_identity(
    name: str, load_config: LoadConfig, editable: EditableModel | None
) -> dict[str, Any]:
    """The facts that decide a model's outputs, as plain values.

    Args:
        name: the name of the model.
        load_config: how it is loaded, where it is given by its name.
        editable: the model, where it is loaded already.
    """
    options = load_config if editable is None else editable.load_config
    return {
        "model": name,
        **options.model_dump(mode="json", include=LOAD_OPTIONS),
        "fingerprint": None if editable is None else _fingerprint(editable),
    }


def _fingerprint(editable: EditableModel) -> str:
    """SHA-256 of the weights and the chat template of a loaded model, in hexadecimal."""
    weights = "" if editable.sharded else editable.fingerprint
    template = getattr(editable.tokenizer, "chat_template", None)
    return hashlib.sha256(f"{weights}{template}".encode()).hexdigest()


def check_direction(direction: str) -> None:
    """Check the name of a direction.

    Raises:
        ConfigError: there is no such direction.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"`direction` must be `raise` or `lower`, got {direction!r}.")


def check_integer(argument: str, value: object, minimum: int) -> None:
    """Check that an argument is an integer of at least `minimum`.

    Raises:
        ConfigError: it is not; names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"`{argument}` must be an integer of at least {minimum}, got {value!r}.")
