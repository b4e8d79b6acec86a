"""Set the game up: rows, layers, segment, board, adapter, trainer and judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.core.types import Concept
from retouch.editing.board import Board
from retouch.editing.judge import Judge
from retouch.editing.layers import Layers
from retouch.editing.rows import EditRows
from retouch.editing.tampering import Tamperer
from retouch.editing.task import set_task
from retouch.editing.trainer import Trainer
from retouch.models.adapters import attach
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment
from retouch.representations.patching import Patching

CHECKED = 32  # tokens of one row that the segment is held against the whole model on


@dataclass(frozen=True)
class Setting:
    """An edit that is ready to be played.

    Attributes:
        trainer: plays the rounds.
        layers: the blocks chosen, and why.
        patching: what the choice rests on; None without pairs or with blocks given.
        rows: how many rows of each kind take part.
    """

    trainer: Trainer
    layers: Layers
    patching: Patching | None
    rows: dict[str, int]


def set_up(
    loaded: LoadedModel,
    concept: Concept,
    config: EditConfig,
    say: Callable[[str, str], None] = lambda stage, detail: None,
) -> Setting:
    """Prepare an edit and attach a fresh adapter to the model.

    Raises:
        ModelError: the model has an adapter already, or a layer does not exist.
        DataError: the concept has no rows on one side.
    """
    if loaded.edited:
        raise ModelError(
            f"{loaded.name} has an adapter already.",
            "Edit the base model, or export the edited one as `merged` and edit that.",
        )
    task = set_task(loaded, concept, config, say)
    trainer = lay_out(loaded, task.train, task.layers, task.judge, config)
    return Setting(trainer, task.layers, task.patching, _counts(task.train, task.validation))


def lay_out(
    loaded: LoadedModel, train: EditRows, layers: Layers, judge: Judge, config: EditConfig
) -> Trainer:
    """Run the rows through what never changes, attach a fresh adapter, and sit the players down.

    Raises:
        DataError: an adversary is asked for, and there are no pairs.
        ModelError: a block does not exist or has no linear layer that is asked for, or the blocks
            cannot be run alone.
    """
    taps = layers.tapped
    segment = Segment(loaded, min(*layers.adapted, *taps), max(*layers.adapted, *taps))
    loaded.settle(range(segment.first, segment.last + 1))
    segment.check(torch.tensor([train.source[0].ids[:CHECKED]]))
    board = Board(loaded, train, segment, taps, config)
    tamperer = Tamperer(loaded, train, config) if config.tamper else None
    attach(loaded, layers.adapted, config.modules, config.rank, config.alpha, config.seed)
    return Trainer(loaded, config, board, segment, taps, judge, tamperer)


def _counts(train: EditRows, validation: EditRows) -> dict[str, int]:
    return {
        "source": len(train.source),
        "target": len(train.target),
        "retain": len(train.hold),
        "validation_source": len(validation.source),
        "validation_retain": len(validation.hold),
    }
