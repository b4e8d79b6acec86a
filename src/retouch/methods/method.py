"""The protocol of a method, what it is given, and how its settings say what may be tuned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from retouch.core.config import EditConfig
from retouch.core.types import Concept, Direction
from retouch.editing.judge import Judge, make_judge
from retouch.editing.layers import Layers, choose_layers
from retouch.editing.rows import EditRows, choose_rows
from retouch.models.load import LoadedModel
from retouch.representations.patching import Patching, trace

Say = Callable[[str, int, int], None]

TRACED = 16  # pairs that the choice of layers rests on


def tunable(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: tuple[Any, ...] = (),
    description: str,
) -> Any:
    """A settings field with the range that a search may draw from.

    Whole numbers where `default` is one; on a logarithmic scale with `log`; or one of `choices`.
    """
    search: dict[str, Any] = (
        {"choices": list(choices)} if choices else {"low": low, "high": high, "log": log}
    )
    return Field(default, description=description, json_schema_extra={"search": search})


class Settings(BaseModel):
    """The settings of a method: what `tunable` marks is searched, the rest stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Task:
    """What every method is given: the same rows, the same judge.

    Attributes:
        concept: what is edited.
        config: direction, seed, number of labels and of retain rows; the fields that are the
            game's own are the defaults of Retouch.
        train: the rows to learn from.
        validation: the rows to choose by.
        patching: what causal patching found; None without pairs.
        layers: the blocks that it names, for whoever needs a place to start from.
        judge: behaviour and drift on the validation rows of whatever acts on the model.
    """

    concept: Concept
    config: EditConfig
    train: EditRows
    validation: EditRows
    patching: Patching | None
    layers: Layers
    judge: Judge


def set_task(loaded: LoadedModel, concept: Concept, config: EditConfig) -> Task:
    """Draw the rows of a task and make its judge, from a model that nothing acts on yet.

    Raises:
        DataError: the concept has no rows on one side.
    """
    train = choose_rows(loaded, concept, config, "train")
    validation = choose_rows(loaded, concept, config, "validation")
    patching = None
    if train.twins:
        patching = trace(loaded, train.source[:TRACED], train.twins[:TRACED])
    layers = choose_layers(config, patching, loaded.layout.depth)
    judge = make_judge(loaded, train, validation, layers.tapped, config)
    return Task(concept, config, train, validation, patching, layers, judge)


class Method(ABC):
    """One way to change a concept in a model.

    Attributes:
        id: its name on the command line.
        title: its name in a table.
        source: where it was published.
        settings: the class of its settings.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    settings: ClassVar[type[Settings]] = Settings

    def defaults(self, concept: Concept, direction: Direction) -> dict[str, Any]:
        """Settings that differ from the class's for a concept, as its pack says."""
        return {}

    @abstractmethod
    def apply(self, loaded: LoadedModel, task: Task, settings: Any, say: Say) -> None:
        """Change the model: afterwards an adapter or interventions act on it.

        Nothing else of `loaded` is touched: `models.adapters.detach` brings the base back.

        Args:
            loaded: the base model, with nothing on it.
            task: the rows, and the judge.
            settings: an instance of the method's `settings`.
            say: progress, as (what, done, total).

        Raises:
            ConfigError: the method cannot serve this concept; says why.
            DivergedError: the training fell apart.
        """
