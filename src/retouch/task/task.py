"""The task of an edit: examples to train and validate on, layers to start from, a validator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from retouch.concepts.chat import TokenizedChat
from retouch.concepts.concept import Concept
from retouch.core.config import DataConfig, MethodConfig
from retouch.core.types import Direction, OnEvent, Progress, StageEvent, ignore_event
from retouch.models.editable_model import EditableModel
from retouch.representations.packing import Packer
from retouch.representations.patching import Patching, causal_trace
from retouch.task.base_responses import Shows
from retouch.task.examples import EditExamples, build_examples
from retouch.task.layers import LayerSelection, select_layers
from retouch.task.validation import Validator

TRACED_PAIRS = 12  # pairs that causal patching runs on: the shortest of the training examples
PATCHING_FILE = "layers.json"  # in the checkpoints of a run
TRACED_TOKENS = 4  # of each response; the first ones determine the others


@dataclass(frozen=True)
class EditTask:
    """The task that Retouch and every method that it is compared with receive.

    Attributes:
        concept: the edited concept.
        direction: whether it is raised or lowered.
        seed: of examples, initial weights and batches.
        data: which examples were sampled.
        train: the examples to train on.
        validation: the examples to select checkpoints on.
        patching: the result of causal patching; None without pairs, or with the layers given.
        layers: the selected layers.
        validator: score, drift and retain side on the validation examples.
        packer: makes the batches of its chats.
    """

    concept: Concept
    direction: Direction
    seed: int
    data: DataConfig
    train: EditExamples
    validation: EditExamples
    patching: Patching | None
    layers: LayerSelection
    validator: Validator
    packer: Packer


def build_task(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    seed: int,
    data: DataConfig,
    method: MethodConfig | None = None,
    on_event: OnEvent = ignore_event,
    shows: Shows | None = None,
) -> EditTask:
    """Sample the examples of a task, select its layers and create its validator.

    The model stays unedited.

    Args:
        editable: the base model.
        concept: the edited concept.
        direction: whether it is raised or lowered.
        seed: of the examples.
        data: which examples.
        method: settings that apply to the task: given layers, the validator's discriminators.
        on_event: receives each stage.
        shows: whether a response shows the desired behaviour, as for `build_examples`.

    Raises:
        ConfigError: a given layer does not exist, or would not be trained.
        DataError: the concept has no examples of one set.
    """
    method = method or MethodConfig()

    def report(stage: str, detail: str, done: int = 0, total: int = 0) -> None:
        on_event(StageEvent(stage, detail, done, total))

    report("responses", "the base model responds to the concept's prompts")
    build = partial(build_examples, editable, concept, direction, shows=shows)
    train = build("train", data, seed, partial(report, "responses"))
    validation = build("validation", data, seed, partial(report, "responses"))
    adapted, read = method.lora.layers_to_transform, method.discriminator.layers
    patching = None
    if train.counterparts and (read is None or adapted is None):
        report("layers", "causal patching of target states into source runs, layer by layer")
        patching = _trace(editable, train, partial(report, "layers"))
    layers = select_layers(
        patching,
        editable.layout.depth,
        adapted=adapted,
        read=read,
        logits=method.loss.uses_logits,
    )
    report("layers", str(layers))
    packer = Packer(editable)
    validator = Validator(
        editable, train, validation, layers.read, method.discriminator, seed, packer
    )
    return EditTask(
        concept, direction, seed, data, train, validation, patching, layers, validator, packer
    )


def _trace(editable: EditableModel, train: EditExamples, progress: Progress) -> Patching:
    """The result of causal patching; a run that is resumed has kept it."""

    def trace() -> Patching:
        return causal_trace(editable, *_traced_pairs(train), progress=progress)

    checkpoints = editable.checkpoints
    return trace() if checkpoints is None else checkpoints.kept(PATCHING_FILE, Patching, trace)


def _traced_pairs(train: EditExamples) -> tuple[list[TokenizedChat], list[TokenizedChat]]:
    """The pairs that causal patching runs on, with the beginnings of their responses."""

    def cut(chat: TokenizedChat) -> TokenizedChat:
        return TokenizedChat(chat.ids[: chat.start + TRACED_TOKENS], chat.start)

    # Prefilled examples follow the concept's own ones, and are left out.
    pairs = list(zip(train.source, train.counterparts, strict=True))
    pairs = sorted(pairs[: len(train.source_examples) or None], key=lambda one: len(one[0].ids))
    source, counterparts = zip(*pairs[:TRACED_PAIRS], strict=True)
    return [cut(chat) for chat in source], [cut(chat) for chat in counterparts]
