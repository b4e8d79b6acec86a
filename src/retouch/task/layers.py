"""Which layers to adapt and which to read, from causal patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retouch.core.errors import ConfigError
from retouch.core.units import layers_text
from retouch.representations.patching import Patching

NUM_READ = 2  # least number of layers that the discriminators read
NUM_BELOW = 2  # least number of layers below the first of them that get adapters too
# The same as shares of a deep model's layers, and how many above the first get adapters too.
READ_SHARE, BELOW_SHARE, ABOVE_SHARE = 0.1, 0.1, 0.2


@dataclass(frozen=True)
class LayerSelection:
    """The layers of an edit, 0-based.

    Attributes:
        adapted: layers that get adapters.
        read: layers whose outputs the discriminators read.
        reason: why they were selected, for the run's record.
    """

    adapted: tuple[int, ...]
    read: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"adapt {layers_text(self.adapted)}, read {layers_text(self.read)}: {self.reason}"


def select_layers(
    patching: Patching | None,
    depth: int,
    *,
    adapted: Sequence[int] | None = None,
    read: Sequence[int] | None = None,
    logits: bool = False,
) -> LayerSelection:
    """Read the critical layer and the next ones; adapt them and those just below.

    Args:
        patching: the result of causal patching; None without pairs.
        depth: the number of layers of the model.
        adapted: layers to adapt, in place of the selected ones.
        read: layers to read, in place of the selected ones.
        logits: whether a loss at the logits trains the adapters above the last layer that is read.

    Raises:
        ConfigError: a given layer does not exist or would not be trained.
    """
    if patching is None or not patching.pairs:
        first = min(depth // 2, depth - 1)
        reason = "there are no pairs to patch: the middle of the model"
    else:
        first = patching.critical_layer()
        reason = f"patching layer {first} recovers {patching.recovery[first]:.0%} of the response"
    num_read = max(NUM_READ, round(READ_SHARE * depth))
    read_layers = tuple(range(first, min(first + num_read, depth)))
    if read is not None:
        read_layers, reason = tuple(sorted(read)), "given by the configuration"
    _check_exists("discriminator.layers", read_layers, depth)
    below = max(NUM_BELOW, round(BELOW_SHARE * depth))
    # The losses at the logits train layers above those that are read too.
    above = min(depth - 1, read_layers[0] + round(ABOVE_SHARE * depth)) if logits else 0
    lowest, highest = max(0, read_layers[0] - below), max(read_layers[-1], above)
    adapted_layers = tuple(range(lowest, highest + 1))
    if adapted is not None:
        adapted_layers = tuple(sorted(adapted))
    _check_exists("lora.layers_to_transform", adapted_layers, depth)
    if max(adapted_layers) > max(read_layers) and not logits:
        raise ConfigError(
            f"`lora.layers_to_transform`: layer {max(adapted_layers)} is above the last layer that "
            f"the discriminators read, {max(read_layers)}, so its adapter would not be trained.",
            "Adapt lower layers, read higher ones (`discriminator.layers`), or set "
            "`loss.sft_weight` or `loss.kl_weight`.",
            code="layer-not-trained",
        )
    return LayerSelection(adapted_layers, read_layers, reason)


def _check_exists(key: str, layers: tuple[int, ...], depth: int) -> None:
    missing = [layer for layer in layers if not 0 <= layer < depth]
    if missing or not layers:
        problem = f"layer {missing[0]} does not exist" if missing else "no layer is given"
        raise ConfigError(
            f"`{key}`: {problem}.",
            f"The model has layers 0 to {depth - 1}.",
            code="layer-missing",
        )
