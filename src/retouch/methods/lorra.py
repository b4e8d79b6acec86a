"""Low-Rank Representation Adaptation: adapters that make the base's states shifted ones.

Its way to train on states, over batches whose base states are kept, serves the other methods that
train on states too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.methods.lora import LoraSettings, train
from retouch.methods.method import Method, Progress, tunable
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.batch import PaddedBatch, make_batches
from retouch.representations.losses import normalized_mse_loss
from retouch.task.task import EditTask

States = Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class CachedBatch:
    """A batch with the base model's states.

    Attributes:
        batch: its rows.
        inputs: the segment's input.
        at: row and position `[n]` of the states that count.
        base: per block the base's states at `at`, `[n, hidden]`.
    """

    batch: PaddedBatch
    inputs: SegmentInputs
    at: tuple[torch.Tensor, torch.Tensor]
    base: States


def see(
    editable: EditableModel,
    segment: Segment,
    rows: Sequence[TokenizedChat],
    blocks: Sequence[int],
    size: int,
    whole: bool = False,
) -> list[CachedBatch]:
    """Batches of rows with the base's states of some blocks; no adapter may be attached yet.

    The states that count are those that predict the response, or with `whole` those at every real
    token.
    """
    return [
        _seen(segment, batch, blocks, whole)
        for batch in make_batches(rows, size, int(editable.tokenizer.pad_token_id))
    ]


@torch.no_grad()
def _seen(segment: Segment, batch: PaddedBatch, blocks: Sequence[int], whole: bool) -> CachedBatch:
    inputs = segment.capture_inputs(batch.ids)
    rows, positions = (
        batch.token_mask().nonzero(as_tuple=True) if whole else batch.response_positions()
    )
    states = segment.forward(inputs, blocks)
    base = {block: states[block][rows, positions] for block in blocks}
    return CachedBatch(batch, inputs, (rows, positions), base)


def present(segment: Segment, seen: CachedBatch) -> States:
    """Per block the states `[n, hidden]` as the adapters make them, where they count."""
    states = segment.forward(seen.inputs, tuple(seen.base))
    return {block: states[block][seen.at] for block in seen.base}


def held(segment: Segment, holds: Iterator[CachedBatch]) -> torch.Tensor:
    """How far the next batch of the retain set is from the base's states, mean over its blocks."""
    seen = next(holds, None)
    if seen is None:
        return torch.zeros(())
    states = present(segment, seen)
    parts = [normalized_mse_loss(states[block], wanted) for block, wanted in seen.base.items()]
    found: torch.Tensor = torch.stack(parts).mean()
    return found


def places(seen: CachedBatch) -> torch.Tensor:
    """The place `[n]` in its response of each state, from 0, the decision."""
    rows, positions = seen.at
    return positions - (torch.tensor(seen.batch.starts)[rows] - 1)


def place_means(batches: Sequence[CachedBatch]) -> dict[int, torch.Tensor]:
    """Per block the mean of the base's states at each place of the response, `[places, hidden]`."""
    where = torch.cat([places(seen) for seen in batches])
    means = {}
    for block in batches[0].base:
        states = torch.cat([seen.base[block].float() for seen in batches])
        at = where.to(states.device)
        total = states.new_zeros(int(where.max()) + 1, states.shape[-1]).index_add(0, at, states)
        means[block] = total / torch.bincount(at)[:, None]
    return means


def reading_vectors(
    wanted: Sequence[CachedBatch], unwanted: Sequence[CachedBatch]
) -> dict[int, torch.Tensor]:
    """Per block $v_l$ `[places, hidden]`: wanted runs less unwanted ones, means place by place."""
    ours, theirs = place_means(unwanted), place_means(wanted)
    return {
        block: theirs[block][: len(ours[block])] - ours[block][: len(theirs[block])]
        for block in ours
    }


class LorraSettings(LoraSettings):
    """With the strength of the shift and the weight of the retain set."""

    lr: float = tunable(3e-3, low=1e-4, high=1e-2, log=True, description="learning rate (Adam)")
    shift: float = tunable(
        2.0, low=0.5, high=4.0, log=True, description="alpha, in reading vectors"
    )
    retain_weight: float = tunable(
        10.0, low=1.0, high=100.0, log=True, description="of the retain set's states"
    )


class Lorra(Method):
    r"""Learn to be, by adapters, the base model with a reading vector added to its states.

    $$L = \lVert h_l(x) - (h_l^{base}(x) + \alpha v_l) \rVert^2 / \lVert \cdot \rVert^2$$

    along the responses $x$ of the source rows, after algorithm 1. There the contrast vector of each
    text and token comes from a template around the text; here $v_l$ is, place by place in the
    response, the difference of the means of wanted and unwanted runs, since a concept's rows are its
    contrast. The algorithm has no retain set: here it is held at its own states.
    """

    id = "lorra"
    title = "LoRRA"
    source = "Zou et al. 2023, arXiv 2310.01405, algorithm 1"
    settings = LorraSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters from the first block to the last that is read."""
        read_layers, size = task.layers.read, settings.batch
        segment = Segment(editable, 0, max(read_layers))
        source = see(editable, segment, task.train.source, read_layers, size)
        hold = see(editable, segment, task.train.retain, read_layers, size, whole=True)
        wanted = see(
            editable, segment, task.train.counterparts or task.train.target, read_layers, size
        )
        vectors = reading_vectors(wanted, source)

        def make_loss() -> Any:
            sources = shuffled_forever(source, random.Random(f"{task.config.seed}:source"))
            holds = shuffled_forever(hold, random.Random(f"{task.config.seed}:hold"))

            def loss(_: int) -> torch.Tensor:
                moved = shift_loss(segment, next(sources), vectors, settings.shift)
                total: torch.Tensor = moved + settings.retain_weight * held(segment, holds)
                return total

            return loss

        train(editable, task, settings, range(segment.last + 1), make_loss, progress)


def shift_loss(segment: Segment, seen: CachedBatch, vectors: States, alpha: float) -> torch.Tensor:
    """Distance of the present states to the base's with `alpha` vectors on top, mean of blocks.

    Places that the vectors do not reach are left out.
    """
    states, where = present(segment, seen), places(seen)
    parts = []
    for block, base in seen.base.items():
        reached = (where < len(vectors[block])).to(base.device)
        shift = vectors[block][where.to(base.device)[reached]].to(base.dtype)
        parts.append(normalized_mse_loss(states[block][reached], base[reached] + alpha * shift))
    return torch.stack(parts).mean()
