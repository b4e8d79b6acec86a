"""Set the game up: rows, layers, segment, board, adapter, trainer and judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.core.types import Concept
from retouch.editing.board import Board
from retouch.editing.judge import Judge, make_judge
from retouch.editing.layers import Layers, choose_layers
from retouch.editing.rows import EditRows, choose_rows
from retouch.editing.trainer import Trainer
from retouch.models.adapters import attach
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment
from retouch.representations.patching import Patching, trace

TRACED = 16  # pairs that the choice of layers rests on


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
    trainer = lay_out(loaded, train, layers, judge, config)
    return Setting(trainer, layers, patching, _counts(train, validation))


def lay_out(
    loaded: LoadedModel, train: EditRows, layers: Layers, judge: Judge, config: EditConfig
) -> Trainer:
    """Run the rows through what never changes, attach a fresh adapter, and sit the players down.

    Raises:
        ModelError: a block does not exist or has no linear layer that is asked for.
    """
    taps = layers.tapped
    segment = Segment(loaded, min(*layers.adapted, *taps), max(*layers.adapted, *taps))
    board = Board(loaded, train, segment, taps, config)
    attach(loaded, layers.adapted, config.modules, config.rank, config.alpha, config.seed)
    return Trainer(loaded, config, board, segment, taps, judge)


def _counts(train: EditRows, validation: EditRows) -> dict[str, int]:
    return {
        "source": len(train.source),
        "target": len(train.target),
        "retain": len(train.hold),
        "validation_source": len(validation.source),
        "validation_retain": len(validation.hold),
    }


def _range(layers: tuple[int, ...]) -> str:
    whole = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    named = f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))
    return f"block{'s' if len(layers) > 1 else ''} {named}"
