"""What an edit computes, before it is begun: operations, runs of blocks, weights that are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from retouch.core.config import EditConfig
from retouch.editing.layers import Layers
from retouch.editing.task import TRACED
from retouch.editing.texts import Sides, Texts
from retouch.models.footprint import Counts, forward, trained
from retouch.models.machine import Machine

TOGETHER = 256  # rows that are generated together
JUDGED = 32  # rows that are judged together
# The share of the rate of a large matrix product that an edit's many small ones reach, and the
# seconds that starting one block's operations takes: assumptions, held against edits of pocket.
UTILISATION = 0.3
STARTING = {"cpu": 5e-4, "cuda": 3e-4}


@dataclass(frozen=True)
class Workload:
    """An edit in lengths and counts.

    Attributes:
        config: what is asked for.
        counts: the numbers of the model's weights.
        layers: the blocks that are adapted and read.
        adapter: trainable numbers of the adapter.
        hidden: the width of a hidden state.
        cache: bytes of keys and values that a token leaves.
        paired: whether source rows have partners.
        train: the rows that are learned from.
        validation: the rows that are chosen by.
        asked: what is asked when the edit is measured.
        compared: the texts that drift is measured on then.
    """

    config: EditConfig
    counts: Counts
    layers: Layers
    adapter: int
    hidden: int
    cache: int
    paired: bool
    train: Sides
    validation: Sides
    asked: Texts
    compared: Texts

    @property
    def first(self) -> int:
        """The first block of the segment."""
        return min(*self.layers.adapted, *self.layers.tapped)

    @property
    def last(self) -> int:
        """The last block of the segment."""
        return max(*self.layers.adapted, *self.layers.tapped)

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return len(self.counts.blocks)


@dataclass(frozen=True)
class Phase:
    """A part of an edit.

    Attributes:
        name: what is done.
        operations: multiplications and additions.
        calls: how often a block is run, one after the other.
        read: bytes of weights, and of keys and values, that these runs read or write.
    """

    name: str
    operations: float
    calls: int
    read: int


def phases(work: Workload, itemsize: int) -> list[Phase]:
    """The parts of an edit in their order, and the measurement after it."""
    block = itemsize * sum(work.counts.blocks) // work.depth

    def phase(name: str, operations: float, calls: int, read: int = 0) -> Phase:
        return Phase(name, operations, calls, calls * block + read)

    whole = sum(work.counts.passed) + work.counts.head
    train, validation, config = work.train, work.validation, work.config
    found = [phase("base replies", *_generation(work, train.every + validation.every))]
    if work.paired and (config.taps is None or config.layers is None):
        tokens = train.source.tokens * min(TRACED, train.source.rows) // train.source.rows
        runs = work.depth + 2
        found.append(phase("causal patching", runs * forward(whole, tokens), runs * work.depth))
    found.append(phase("board", *_board(work)))
    found.append(phase("discriminators", *_teaching(work)))
    found.append(phase("adapter", *_answering(work)))
    tokens = validation.source.tokens + 2 * validation.hold.tokens
    batches = validation.source.batches(JUDGED) + 2 * validation.hold.batches(JUDGED)
    runs = config.rounds * work.depth * batches
    found.append(phase("judge", config.rounds * forward(whole, tokens), runs))
    if work.asked.rows:
        operations, calls, read = _generation(work, work.asked)
        operations += forward(whole, work.compared.tokens)
        calls += work.depth * work.compared.batches(JUDGED)
        found.append(phase("measurement", 2 * operations, 2 * calls, 2 * read))
    return found


def _generation(work: Workload, texts: Texts) -> tuple[float, int, int]:
    """Every token passes the blocks once, and the reply's the head besides.

    Each new token reads the keys and values of all before it once to look at them, and once more to
    write them anew with its own at the end.
    """
    inside, longest = sum(work.counts.passed), max(texts.replies, default=0)
    operations = forward(inside, texts.tokens) + forward(work.counts.head, sum(texts.replies))
    passes = zip(texts.prompts, texts.replies, strict=True)
    looked_at = sum(reply * (prompt + reply // 2) for prompt, reply in passes)
    return operations, texts.batches(TOGETHER) * longest * work.depth, 3 * work.cache * looked_at


def _segment(work: Workload) -> int:
    return sum(work.counts.passed[work.first : work.last + 1])


def _board(work: Workload) -> tuple[float, int]:
    """Every text runs up to the end of the segment once."""
    train, config = work.train, work.config
    texts = train.every + train.target if work.paired else train.every
    below = sum(work.counts.passed[: work.last + 1])
    return forward(below, texts.tokens), texts.batches(config.batch) * (work.last + 1)


def _teaching(work: Workload) -> tuple[float, int]:
    """The source rows run through the segment twice a round; discriminators learn from states."""
    config, source = work.config, work.train.source
    states = sum(min(n, config.reply_positions) for n in source.replies + work.train.target.replies)
    steps = config.discriminator_first + (config.rounds - 1) * config.discriminator_steps
    if config.discriminator_fresh:
        steps = config.rounds * config.discriminator_first
    width = work.hidden * max(config.discriminator_width, 1)
    operations = 2.0 * config.rounds * forward(_segment(work), source.tokens)
    operations += 6.0 * width * states * steps * len(work.layers.tapped)
    calls = 2 * config.rounds * source.batches(config.batch) * (work.last - work.first + 1)
    return operations, calls + steps * len(work.layers.tapped)


def _answering(work: Workload) -> tuple[float, int]:
    """A step takes a batch of source rows and one of the retain set through the segment and back.

    With `supervised_weight` the source goes through the whole model instead; a push found in
    `perturb_steps` gradient steps takes the source so many times more.
    """
    config, long = work.config, work.last - work.first + 1
    pushes = 1 + config.perturb_steps * (config.perturb > 0)
    tokens = {
        name: texts.tokens * min(config.batch, texts.rows) // max(texts.rows, 1)
        for name, texts in (("source", work.train.source), ("hold", work.train.hold))
    }
    step = trained(_segment(work), work.adapter, pushes * tokens["source"] + tokens["hold"])
    calls = 3 * long * (pushes + (tokens["hold"] > 0))
    if config.supervised_weight:
        whole = sum(work.counts.passed) + work.counts.head
        step += trained(whole, work.adapter, tokens["source"])
        calls += 3 * work.depth
    steps = config.rounds * config.steps
    return steps * step, steps * calls


@dataclass(frozen=True)
class Foreseen:
    """A phase of the edit with its seconds on a machine."""

    phase: Phase
    seconds: float


def foresee(parts: Iterable[Phase], machine: Machine) -> list[Foreseen]:
    """The phases with their seconds on a machine."""
    return [Foreseen(part, _seconds(part, machine)) for part in parts]


def _seconds(phase: Phase, machine: Machine) -> float:
    """Computing, reading, and the starting of operations, one after the other."""
    computing = phase.operations / (machine.rate * UTILISATION)
    starting = phase.calls * STARTING.get(machine.device.type, STARTING["cpu"])
    return computing + phase.read / machine.bandwidth + starting
