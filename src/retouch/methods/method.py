"""The interface of a method, which Retouch and every baseline implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from retouch.concepts.concept import Concept
from retouch.core.strict_model import StrictModel
from retouch.core.types import Direction, Progress
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask


class MethodSettings(StrictModel):
    """Base class of a method's settings.

    `retouch tune` searches the fields that `core.config.option` gives a range or choices.
    """


class Method(ABC):
    """A method that changes a concept in a model.

    A package adds a method as an entry point of the group `retouch.methods`: the name is the
    method's id, the value its class, which is instantiated without arguments.

    Attributes:
        id: its name on the command line and in result files.
        title: its name in tables and plots.
        source: the publication that describes it.
        settings: the class of its settings, a pydantic model.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    settings: ClassVar[type[StrictModel]] = MethodSettings

    def defaults(self, concept: Concept, direction: Direction) -> dict[str, Any]:
        """Settings that a concept's pack gives for this method, as a nested mapping."""
        return {}

    @abstractmethod
    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Edit the model: afterwards it has an adapter, interventions or both.

        Nothing else of `editable` changes: `models.adapters.detach` restores the base model.

        Args:
            editable: the base model.
            task: the examples, the layers and the validator.
            settings: an instance of the class `settings`.
            progress: called with a description, the amount done and the total.

        Raises:
            ConfigError: the method does not support the concept.
            DivergedError: the training diverged.
        """
