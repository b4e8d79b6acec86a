"""Which blocks to adapt and which to read, from causal patching."""

from __future__ import annotations

from dataclasses import dataclass

from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError
from retouch.representations.patching import Patching

READ = 2  # how many blocks the discriminators read
BELOW = 2  # how many blocks below the decisive one get adapters too


@dataclass(frozen=True)
class Layers:
    """The blocks of an edit, 0-based.

    Attributes:
        adapted: those that get adapters.
        tapped: those whose outputs are read.
        why: a sentence for the run's record.
    """

    adapted: tuple[int, ...]
    tapped: tuple[int, ...]
    why: str


def choose_layers(config: EditConfig, patching: Patching | None, depth: int) -> Layers:
    """The decisive block and the next ones are read; they and those just below are adapted.

    The decisive block is the first from which on the wanted states, put in place of the unwanted
    ones, bring back nearly all of the wanted behaviour. What the configuration names goes first.

    Raises:
        ConfigError: a block that the configuration names does not exist, or would not be trained.
    """
    if patching is None or not patching.pairs:
        first = min(depth // 2, depth - 1)
        why = "there are no pairs to patch: the middle of the model"
    else:
        first = patching.decisive()
        why = f"patching block {first} brings back {patching.recovery[first]:.0%} of the behaviour"
    tapped = tuple(range(first, min(first + READ, depth)))
    if config.taps is not None:
        tapped, why = tuple(sorted(config.taps)), "the configuration names them"
    adapted = tuple(range(max(0, tapped[0] - BELOW), tapped[-1] + 1))
    if config.layers is not None:
        adapted = tuple(sorted(config.layers))
    _check(adapted, tapped, depth, config.supervised_weight > 0)
    return Layers(adapted, tapped, why)


def _check(adapted: tuple[int, ...], tapped: tuple[int, ...], depth: int, supervised: bool) -> None:
    for option, blocks in (("layers", adapted), ("taps", tapped)):
        beyond = [block for block in blocks if not 0 <= block < depth]
        if beyond or not blocks:
            what = f"there is no block {beyond[0]}" if beyond else "no block is named"
            raise ConfigError(f"`--{option}`: {what}.", f"The model has blocks 0 to {depth - 1}.")
    if max(adapted) > max(tapped) and not supervised:
        raise ConfigError(
            f"`--layers`: block {max(adapted)} lies above the last tap, block {max(tapped)}, so "
            "that its adapter would never be trained.",
            "Adapt lower blocks, read higher ones with --taps, or set --supervised-weight.",
        )
