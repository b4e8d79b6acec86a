"""The protocol of a method, and how its settings progress what may be tuned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from retouch.concepts.concept import Concept
from retouch.core.types import Direction
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask

Progress = Callable[[str, int, int], None]


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
    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """LoraDelta the model: afterwards an adapter or interventions act on it.

        Nothing else of `editable` is touched: `models.adapters.detach` brings the base back.

        Args:
            editable: the base model, with nothing on it.
            task: the rows, and the judge.
            settings: an instance of the method's `settings`.
            progress: progress, as (what, done, total).

        Raises:
            ConfigError: the method cannot serve this concept; says why.
            DivergedError: the training fell apart.
        """
