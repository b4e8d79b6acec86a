"""The task of an edit: rows to learn from and to choose by, blocks to start from, a judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retouch.core.config import EditConfig
from retouch.core.types import Concept
from retouch.editing.judge import Judge, make_judge
from retouch.editing.layers import Layers, choose_layers
from retouch.editing.rows import EditRows, choose_rows
from retouch.models.load import LoadedModel
from retouch.representations.patching import Patching, trace

TRACED = 16  # pairs that the choice of layers rests on


@dataclass(frozen=True)
class Task:
    """What Retouch, and every method that it is compared with, is given.

    Attributes:
        concept: what is edited.
        config: direction, seed, number of labels and of retain rows; the fields that are the
            game's own are for Retouch alone.
        train: the rows to learn from.
        validation: the rows to choose by.
        patching: what causal patching found; None without pairs, or with the blocks given.
        layers: the blocks chosen, for whoever needs a place to start from.
        judge: behaviour and drift on the validation rows of whatever acts on the model.
    """

    concept: Concept
    config: EditConfig
    train: EditRows
    validation: EditRows
    patching: Patching | None
    layers: Layers
    judge: Judge


def set_task(
    loaded: LoadedModel,
    concept: Concept,
    config: EditConfig,
    say: Callable[[str, str], None] = lambda stage, detail: None,
) -> Task:
    """Draw the rows of a task, choose its blocks and make its judge; nothing acts on the model yet.

    Args:
        loaded: the base model.
        concept: what is to be edited.
        config: which rows, and the blocks where they are given.
        say: told each stage and what it found.

    Raises:
        ConfigError: a block does not exist, or would not be trained.
        DataError: the concept has no rows on one side.
    """
    say("replies", "the base model replies to the rows of the concept")
    train = choose_rows(loaded, concept, config, "train")
    validation = choose_rows(loaded, concept, config, "validation")
    say("layers", "patching wanted states into unwanted runs, block by block")
    patching = None
    if train.twins and (config.taps is None or config.layers is None):
        patching = trace(loaded, train.source[:TRACED], train.twins[:TRACED])
    layers = choose_layers(config, patching, loaded.layout.depth)
    say("layers", f"adapt {_range(layers.adapted)}, read {_range(layers.tapped)}: {layers.why}")
    judge = make_judge(loaded, train, validation, layers.tapped, config)
    return Task(concept, config, train, validation, patching, layers, judge)


def _range(layers: tuple[int, ...]) -> str:
    whole = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    named = f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))
    return f"block{'s' if len(layers) > 1 else ''} {named}"
