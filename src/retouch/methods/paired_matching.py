"""Paired matching: Retouch without its game, each unwanted run pulled to its wanted counterpart."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from retouch.methods.lora import LoraSettings, train
from retouch.methods.lorra import CachedBatch, States, held, place_means, places, present, see
from retouch.methods.method import Method, Progress, tunable
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.losses import normalized_mse_loss
from retouch.task.layers import NUM_BELOW
from retouch.task.task import EditTask


class PairedSettings(LoraSettings):
    """With the weights of the two losses, and the place."""

    lr: float = tunable(3e-3, low=1e-4, high=1e-2, log=True, description="learning rate (Adam)")
    pair_weight: float = tunable(
        1.0, low=0.3, high=10.0, log=True, description="of matching the wanted counterpart's states"
    )
    retain_weight: float = tunable(
        30.0, low=3.0, high=100.0, log=True, description="of the retain set's states"
    )
    offset: int = tunable(
        0, choices=(-2, -1, 0, 1, 2), description="blocks above those that patching names"
    )


class PairedMatching(Method):
    r"""Pull the states along the response of a source row to the base's states of its wanted counterpart.

    $$L = w_p \frac{\sum_i \lVert h_i - h^{counterpart}_i \rVert^2}{\sum_i \lVert h^{counterpart}_i \rVert^2}
        + w_r \frac{\sum_j \lVert h_j - h^{base}_j \rVert^2}{\sum_j \lVert h^{base}_j \rVert^2}$$

    with $i$ over the response at the read blocks and $j$ over every token of the retain set at the
    last of them. No discriminator, no moving average: what is left of the edit without its game.

    Without pairs there is no counterpart: a source state at the response's position $p$ is pulled to the mean
    of the target rows' states at the same position of theirs; positions that no target response
    reaches are left alone.
    """

    id = "paired-matching"
    title = "Paired matching"
    source = "the paired term of Retouch alone"
    settings = PairedSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters on the read blocks and those just below."""
        read_layers = placed(task, settings.offset, editable.layout.depth)
        segment = Segment(editable, max(0, read_layers[0] - NUM_BELOW), read_layers[-1])
        pairs = pair_up(editable, task, segment, read_layers, settings.batch)
        hold = see(
            editable, segment, task.train.retain, read_layers[-1:], settings.batch, whole=True
        )

        def make_loss() -> Any:
            sources = shuffled_forever(pairs, random.Random(f"{task.config.seed}:source"))
            holds = shuffled_forever(hold, random.Random(f"{task.config.seed}:hold"))

            def loss(_: int) -> torch.Tensor:
                near = settings.pair_weight * pair_loss(segment, next(sources))
                total: torch.Tensor = near + settings.retain_weight * held(segment, holds)
                return total

            return loss

        train(editable, task, settings, range(segment.first, segment.last + 1), make_loss, progress)


def placed(task: EditTask, offset: int, depth: int) -> tuple[int, ...]:
    """The read blocks, moved by `offset`, as far as the model reaches."""
    moved = {min(max(layer + offset, 0), depth - 1) for layer in task.layers.read}
    return tuple(sorted(moved))


def pair_up(
    editable: EditableModel,
    task: EditTask,
    segment: Segment,
    read_layers: tuple[int, ...],
    size: int,
) -> list[CachedBatch]:
    """The source rows in batches, with the states that they are pulled to in place of their own."""
    source = see(editable, segment, task.train.source, read_layers, size)
    if not task.train.counterparts:
        means = place_means(see(editable, segment, task.train.target, read_layers, size))
        return [_to_means(seen, means) for seen in source]
    pad = int(editable.tokenizer.pad_token_id)
    pairs = []
    for seen in source:
        counterpart = seen.batch.counterpart(task.train.counterparts, pad)
        with torch.no_grad():
            states = segment.forward(segment.capture_inputs(counterpart.ids), read_layers)
        at = counterpart.response_positions()
        pairs.append(replace(seen, base={layer: states[layer][at] for layer in read_layers}))
    return pairs


def pair_loss(segment: Segment, seen: CachedBatch) -> torch.Tensor:
    """Distance of the present states to those they are pulled to, mean of the read_layers."""
    states = present(segment, seen)
    return torch.stack(
        [normalized_mse_loss(states[layer], seen.base[layer]) for layer in seen.base]
    ).mean()


def _to_means(seen: CachedBatch, means: States) -> CachedBatch:
    """The same batch, pulled to the means at the places of the response that they reach."""
    where, (rows, positions) = places(seen), seen.at
    reached = where < len(next(iter(means.values())))
    base = {
        layer: mean[where[reached].to(mean.device)].to(seen.base[layer].dtype)
        for layer, mean in means.items()
    }
    return replace(seen, at=(rows[reached], positions[reached]), base=base)
