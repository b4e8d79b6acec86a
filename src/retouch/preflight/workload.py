"""What an edit computes, before it is retain_openings: operations, runs of blocks, weights that are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from retouch.core.config import EditConfig
from retouch.models.generate import row_bytes, rows_together
from retouch.models.memory_estimate import Counts, forward, trained
from retouch.preflight.hardware import Machine
from retouch.preflight.lengths import SplitLengths, Texts
from retouch.representations.logprobs import logit_tokens
from retouch.task.layers import LayerSelection
from retouch.task.task import TRACED

TOGETHER = 256  # rows that are generated together
JUDGED = 32  # rows that are num_validations together, at the most
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
        vocabulary: how many tokens there are logits of.
        itemsize: bytes of a number that is computed with.
        cache: bytes of keys and values that a token leaves.
        paired: whether source rows have partners.
        train: the rows that are learned from.
        validation: the rows that are chosen by.
        asked: what is asked when the edit is measured.
        compared: the texts that drift is measured on then.
        streamed: bytes of each block that comes whenever it runs, 0 where a block stays while it is
            trained; empty where all stay.
        room: bytes of the device beside the weights, where a limit is set.
    """

    config: EditConfig
    counts: Counts
    layers: LayerSelection
    adapter: int
    hidden: int
    vocabulary: int
    itemsize: int
    cache: int
    paired: bool
    train: SplitLengths
    validation: SplitLengths
    asked: Texts
    compared: Texts
    streamed: tuple[int, ...] = ()
    free_bytes: int | None = None

    @property
    def first(self) -> int:
        """The first block of the segment."""
        return min(*self.layers.adapted, *self.layers.read)

    @property
    def last(self) -> int:
        """The last block of the segment."""
        return max(*self.layers.adapted, *self.layers.read)

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return len(self.counts.blocks)

    @property
    def at_once(self) -> int:
        """How many rows of a batch run at once in training."""
        return min(
            self.config.train.micro_batch_size or self.config.train.batch_size,
            self.config.train.batch_size,
        )

    def together(self, texts: Texts) -> int:
        """How many of the texts are replied to at once."""
        shape = (self.depth, self.hidden, self.vocabulary, texts.longest, self.itemsize)
        return rows_together(self.room, TOGETHER, row_bytes(*shape))

    def num_validations(self, texts: Texts, models: int = 1) -> int:
        """How many of the texts are num_validations at once, by the logits of so many models."""
        tokens = logit_tokens(self.room, self.vocabulary) // models
        return max(1, min(JUDGED, tokens // max(texts.longest, 1)))


@dataclass(frozen=True)
class Phase:
    """A part of an edit.

    Attributes:
        name: what is done.
        operations: multiplications and additions.
        calls: how often a block is run, one after the other.
        read: bytes of weights, and of keys and values, that these runs read or write.
        streamed: bytes of weights that come to the device for them.
    """

    name: str
    operations: float
    calls: int
    read: int
    streamed: int = 0


def phases(work: Workload) -> list[Phase]:
    """The parts of an edit in their order, and the measurement after it."""
    every = work.itemsize * sum(work.counts.blocks)
    # No block stays before it is known which are trained.
    before, after = every if any(work.streamed) else 0, sum(work.streamed)

    def phase(name: str, operations: float, calls: int, read: int = 0, streamed: int = 0) -> Phase:
        return Phase(name, operations, calls, calls * every // work.depth + read, streamed)

    whole = sum(work.counts.passed) + work.counts.head
    train, validation, config = work.train, work.validation, work.config
    asked = [_generation(work, texts) for texts in (train.every, validation.every)]
    operations, forwards, read = (sum(parts) for parts in zip(*asked, strict=True))
    found = [
        phase("base responses", operations, forwards * work.depth, read, forwards * before),
    ]
    if work.paired and (
        config.discriminator.layers is None or config.lora.layers_to_transform is None
    ):
        tokens = train.source.tokens * min(TRACED, train.source.rows) // train.source.rows
        runs = work.depth + 2
        operations = runs * forward(whole, tokens)
        found.append(phase("causal patching", operations, runs * work.depth, 0, runs * before))
    found.append(phase("dataset", *_dataset(work)))
    found.append(phase("discriminators", *_teaching(work)))
    operations, calls, forwards = _answering(work)
    found.append(phase("adapter", operations, calls, 0, forwards * after))
    tokens = validation.source.tokens + 2 * validation.retain.tokens
    forwards = config.train.rounds * (
        validation.source.batches(work.num_validations(validation.source))
        + 2 * validation.retain.batches(work.num_validations(validation.retain, 2))
    )
    operations = config.train.rounds * forward(whole, tokens)
    found.append(phase("judge", operations, forwards * work.depth, 0, forwards * after))
    if work.asked.rows:
        operations, forwards, read = _generation(work, work.asked)
        operations += forward(whole, work.compared.tokens)
        forwards += work.compared.batches(work.num_validations(work.compared, 2))
        calls = 2 * forwards * work.depth
        found.append(phase("measurement", 2 * operations, calls, 2 * read, 2 * forwards * after))
    return found


def _generation(work: Workload, texts: Texts) -> tuple[float, int, int]:
    """Operations, passes through all blocks, and bytes of keys and values.

    Every token passes the blocks once, and the response's the head besides. A batch takes a pass for
    each token of its longest response.

    Each new token reads the keys and values of all before it once to look at them, and once more to
    write them anew with its own at the end.
    """
    inside = sum(work.counts.passed)
    longest = min(work.config.data.max_new_tokens, max(texts.responses, default=0))
    operations = forward(inside, texts.tokens) + forward(work.counts.head, sum(texts.responses))
    passes = zip(texts.prompts, texts.responses, strict=True)
    looked_at = sum(response * (prompt + response // 2) for prompt, response in passes)
    return operations, texts.batches(work.together(texts)) * longest, 3 * work.cache * looked_at


def _segment(work: Workload) -> int:
    return sum(work.counts.passed[work.first : work.last + 1])


def _dataset(work: Workload) -> tuple[float, int, int, int]:
    """Every text runs up to the end of the segment once.

    Before that, one row runs twice through all blocks and twice up to the segment, to see whether
    the segment can run alone.
    """
    train = work.train
    texts = train.every + train.target if work.paired else train.every
    below = sum(work.counts.passed[: work.last + 1])
    micro_batches = texts.batches(work.at_once)
    coming = (micro_batches + 2) * sum(work.streamed[: work.first]) + 2 * sum(work.streamed)
    return forward(below, texts.tokens), micro_batches * (work.last + 1), 0, coming


def _teaching(work: Workload) -> tuple[float, int]:
    """The source rows run through the segment once a round, and once before the first.

    Discriminators learn from the states.
    """
    config, source = work.config, work.train.source
    passes = config.train.rounds + 1
    states = sum(
        min(n, config.discriminator.positions)
        for n in source.responses + work.train.target.responses
    )
    steps = (
        config.discriminator.warmup_steps
        + (config.train.rounds - 1) * config.discriminator.steps_per_round
    )
    if config.discriminator.reset_each_round:
        steps = config.train.rounds * config.discriminator.warmup_steps
    width = work.hidden * max(config.discriminator.hidden_size, 1)
    operations = float(passes) * forward(_segment(work), source.tokens)
    operations += 6.0 * width * states * steps * len(work.layers.read)
    calls = passes * source.batches(work.at_once) * (work.last - work.first + 1)
    return operations, calls + steps * len(work.layers.read)


def _answering(work: Workload) -> tuple[float, int, int]:
    """Operations, runs of a block, and passes through all blocks.

    A step takes a batch of source rows and one of the retain set through the segment and back.

    With `supervised_weight` the source goes through the whole model instead; a push found in
    `perturb_steps` gradient steps takes the source so many times more.
    """
    config, long = work.config, work.last - work.first + 1
    pushes = 1 + config.adversary.latent_steps * (config.adversary.latent_epsilon > 0)
    tokens = {
        name: texts.tokens * min(config.train.batch_size, texts.rows) // max(texts.rows, 1)
        for name, texts in (("source", work.train.source), ("hold", work.train.retain))
    }
    step = trained(_segment(work), work.adapter, pushes * tokens["source"] + tokens["hold"])
    micro_batches = -(-config.train.batch_size // work.at_once)
    calls, forwards = 3 * long * micro_batches * (pushes + (tokens["hold"] > 0)), 0
    if config.loss.sft_weight:
        whole = sum(work.counts.passed) + work.counts.head
        step += trained(whole, work.adapter, tokens["source"])
        calls += 3 * work.depth * micro_batches
        forwards = micro_batches
    steps = config.train.rounds * config.train.steps_per_round
    return steps * step, steps * calls, steps * forwards


@dataclass(frozen=True)
class Foreseen:
    """A phase of the edit with its seconds on a machine."""

    phase: Phase
    seconds: float


def foresee(parts: Iterable[Phase], machine: Machine, speed: float) -> list[Foreseen]:
    """The phases with their seconds where `speed` bytes of weights come in a second."""
    return [Foreseen(part, _seconds(part, machine) + part.streamed / speed) for part in parts]


def _seconds(phase: Phase, machine: Machine) -> float:
    """Computing, reading, and the starting of operations, one after the other."""
    computing = phase.operations / (machine.rate * UTILISATION)
    starting = phase.calls * STARTING.get(machine.device.type, STARTING["cpu"])
    return computing + phase.read / machine.bandwidth + starting
