"""Paired matching: Retouch without its game, each unwanted run pulled to its wanted twin."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from retouch.editing.layers import BELOW
from retouch.editing.losses import matching_loss
from retouch.editing.task import Task
from retouch.methods.lora import LoraSettings, train
from retouch.methods.lorra import Seen, States, held, place_means, places, present, see
from retouch.methods.method import Method, Say, tunable
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment
from retouch.representations.batch import turns


class PairedSettings(LoraSettings):
    """With the weights of the two losses, and the place."""

    lr: float = tunable(3e-3, low=1e-4, high=1e-2, log=True, description="learning rate (Adam)")
    pair_weight: float = tunable(
        1.0, low=0.3, high=10.0, log=True, description="of matching the wanted twin's states"
    )
    retain_weight: float = tunable(
        30.0, low=3.0, high=100.0, log=True, description="of the retain set's states"
    )
    offset: int = tunable(
        0, choices=(-2, -1, 0, 1, 2), description="blocks above those that patching names"
    )


class PairedMatching(Method):
    r"""Pull the states along the reply of a source row to the base's states of its wanted twin.

    $$L = w_p \frac{\sum_i \lVert h_i - h^{twin}_i \rVert^2}{\sum_i \lVert h^{twin}_i \rVert^2}
        + w_r \frac{\sum_j \lVert h_j - h^{base}_j \rVert^2}{\sum_j \lVert h^{base}_j \rVert^2}$$

    with $i$ over the reply at the tapped blocks and $j$ over every token of the retain set at the
    last of them. No discriminator, no moving average: what is left of the edit without its game.

    Without pairs there is no twin: a source state at the reply's position $p$ is pulled to the mean
    of the target rows' states at the same position of theirs; positions that no target reply
    reaches are left alone.
    """

    id = "paired-matching"
    title = "Paired matching"
    source = "the paired term of Retouch alone"
    settings = PairedSettings

    def apply(self, loaded: LoadedModel, task: Task, settings: Any, say: Say) -> None:
        """Train adapters on the tapped blocks and those just below."""
        taps = placed(task, settings.offset, loaded.layout.depth)
        segment = Segment(loaded, max(0, taps[0] - BELOW), taps[-1])
        pairs = pair_up(loaded, task, segment, taps, settings.batch)
        hold = see(loaded, segment, task.train.hold, taps[-1:], settings.batch, whole=True)

        def make_loss() -> Any:
            sources = turns(pairs, random.Random(f"{task.config.seed}:source"))
            holds = turns(hold, random.Random(f"{task.config.seed}:hold"))

            def loss(_: int) -> torch.Tensor:
                near = settings.pair_weight * pair_loss(segment, next(sources))
                total: torch.Tensor = near + settings.retain_weight * held(segment, holds)
                return total

            return loss

        train(loaded, task, settings, range(segment.first, segment.last + 1), make_loss, say)


def placed(task: Task, offset: int, depth: int) -> tuple[int, ...]:
    """The tapped blocks, moved by `offset`, as far as the model reaches."""
    moved = {min(max(tap + offset, 0), depth - 1) for tap in task.layers.tapped}
    return tuple(sorted(moved))


def pair_up(
    loaded: LoadedModel, task: Task, segment: Segment, taps: tuple[int, ...], size: int
) -> list[Seen]:
    """The source rows in batches, with the states that they are pulled to in place of their own."""
    source = see(loaded, segment, task.train.source, taps, size)
    if not task.train.twins:
        means = place_means(see(loaded, segment, task.train.target, taps, size))
        return [_to_means(seen, means) for seen in source]
    pad = int(loaded.tokenizer.pad_token_id)
    pairs = []
    for seen in source:
        twin = seen.batch.twin(task.train.twins, pad)
        with torch.no_grad():
            states = segment.run(segment.catch(twin.ids), taps)
        at = twin.reply()
        pairs.append(replace(seen, base={tap: states[tap][at] for tap in taps}))
    return pairs


def pair_loss(segment: Segment, seen: Seen) -> torch.Tensor:
    """Distance of the present states to those they are pulled to, mean of the taps."""
    states = present(segment, seen)
    return torch.stack([matching_loss(states[tap], seen.base[tap]) for tap in seen.base]).mean()


def _to_means(seen: Seen, means: States) -> Seen:
    """The same batch, pulled to the means at the places of the reply that they reach."""
    where, (rows, positions) = places(seen), seen.at
    reached = where < len(next(iter(means.values())))
    base = {
        tap: mean[where[reached].to(mean.device)].to(seen.base[tap].dtype)
        for tap, mean in means.items()
    }
    return replace(seen, at=(rows[reached], positions[reached]), base=base)
