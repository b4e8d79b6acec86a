"""The variants that the speed benchmarks set side by side, on the same prompts and rounds.

published
    ARE's loop as its repository runs it, by the functions of `methods.are_published`: one prompt at
    a time through the whole model, fresh discriminators every round, and the states of all prompts
    read anew, one at a time. After every epoch the test prompts are run as well, for a loss
    that is printed (train.py: `peft_model_finetune`). The stop rule is left out.
full, cut, segment
    The project's own `EditDataset` and `Trainer`, and so the same batches, losses and steps; they differ
    in how a batch gets to the states that are read. `full` runs the whole model with its head,
    `cut` stops it at the last layer, `segment` is the engine itself: inputs of the first adapted
    block computed once, and the blocks of the segment alone from then on.
sft-step
    Supervised fine-tuning for scale: a LoRA on all linear layers of all blocks, cross-entropy on
    every token, as many steps as a round of the others has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peak import Peak
from benchmarks.workload import Case, Prompts, draw_prompts
from retouch.methods.are_original import (
    Reader,
    accuracy,
    last_state,
    last_states,
    learn,
    prompts,
    push,
)
from retouch.models.adapters import attach, detach, parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.activations import forward_with_states, record_activations
from retouch.representations.batch import PaddedBatch, make_batches
from retouch.task.validation import ValidationResult
from retouch.training.dataset import EditDataset
from retouch.training.trainer import Trainer

SHORT = 20.0  # seconds: what takes less is run three times, and the fastest counts
LONG = 40.0  # what takes more is run once


class Whole(Segment):
    """In the segment's place the whole forward pass, every time, head included."""

    def capture_inputs(self, ids: torch.Tensor) -> SegmentInputs:
        """Nothing is computed ahead: the ids `[rows, tokens]` are kept."""
        return SegmentInputs(ids, ())

    def forward(self, inputs: SegmentInputs, read_layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of the read blocks; gradients flow."""
        return forward_with_states(self._editable, inputs.hidden, read_layers)[0]

    def forward_states(
        self, ids: torch.Tensor, read_layers: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """As `run`, without gradients."""
        with torch.no_grad():
            return self.run(self.capture_inputs(ids), read_layers)


class Cut(Whole):
    """The forward pass from the ids on, stopped at the last layer."""

    def forward(self, inputs: SegmentInputs, read_layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of the read blocks; gradients flow."""
        with (
            record_activations(self._editable, read_layers, gradients=True) as states,
            self._ending(),
        ):
            self._editable.model(input_ids=inputs.hidden.to(self._editable.device), use_cache=False)
        return states

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Inside, a forward pass ends after the last block, and the `with` with it."""

        def stop(*_: Any) -> None:
            raise _Reached

        handle = self._editable.blocks[self.last].register_forward_hook(stop)
        try:
            yield
        except _Reached:
            pass
        finally:
            handle.remove()


class _Reached(Exception):
    """The last layer is read."""


@dataclass(frozen=True)
class AttackOutcome:
    """One run of a variant.

    Attributes:
        once: seconds before the first round: first states, first batches, the adapter.
        rounds: seconds of each round.
        losses: the mean loss of each round.
        cpu: seconds that the process had of all cores together; beside the others, since a machine
            that does something else as well stretches only them.
    """

    once: float
    rounds: list[float]
    losses: list[float]
    cpu: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.once + sum(self.rounds)

    def a_round(self) -> float:
        """Seconds of a round, in the mean."""
        return sum(self.rounds) / len(self.rounds)


@dataclass(frozen=True)
class Measured:
    """A variant on a case: the fastest of its runs, and the memory at the most of all of them."""

    case: str
    variant: str
    samples: int
    peak_bytes: int
    runs: int
    best: AttackOutcome


class Clock:
    """Seconds since the last look, when all that was asked of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last, self._began = self._now(), time.process_time()

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, self._now()
        return self._last - before

    def cpu(self) -> float:
        """Seconds of processor time, all threads together, since the clock was made."""
        return time.process_time() - self._began


Loop = Callable[[EditableModel, Case, Prompts], AttackOutcome]


def published(editable: EditableModel, case: Case, drawn: Prompts) -> AttackOutcome:
    """ARE's published loop; every round is played."""
    clock, read_layers, settings = Clock(editable.device), case.read_layers, case.published
    shown, labels = prompts(drawn.theirs)
    tests, known = prompts(drawn.theirs_tested)
    attach(editable, case.layers, settings.modules, settings.rank, settings.alpha, 0)
    reader = learn(last_states(editable, shown, read_layers), labels, settings, 0)
    once, laps, losses = clock.lap(), [], []
    for number in range(1, case.rounds + 1):
        losses.append(push(editable, shown, reader, read_layers, settings))
        for _ in range(settings.epochs):
            _tested(editable, tests, known, reader, read_layers)
        reader = learn(last_states(editable, shown, read_layers), labels, settings, number)
        accuracy(reader, last_states(editable, tests, read_layers), known)
        laps.append(clock.lap())
    return AttackOutcome(once, laps, losses, clock.cpu())


@torch.no_grad()
def _tested(
    editable: EditableModel,
    tests: Sequence[torch.Tensor],
    known: torch.Tensor,
    reader: Reader,
    read_layers: Sequence[int],
) -> float:
    """The published loop's loss on the test prompts, one at a time."""
    losses = [
        F.cross_entropy(
            reader(last_state(editable, ids, read_layers)), label[None].to(editable.device)
        )
        for ids, label in zip(tests, known, strict=True)
    ]
    return float(torch.stack(losses).mean())


def played(kind: type[Segment]) -> Loop:
    """The project's game with this kind of segment."""

    def loop(editable: EditableModel, case: Case, drawn: Prompts) -> AttackOutcome:
        clock = Clock(editable.device)
        trainer = seat(editable, case, drawn, kind)
        once, laps, losses = clock.lap(), [], []
        for event in trainer.train():
            laps.append(clock.lap())
            losses.append(event.losses["adversarial"])
        return AttackOutcome(once, laps, losses, clock.cpu())

    return loop


def seat(
    editable: EditableModel, case: Case, drawn: Prompts, kind: type[Segment] = Segment
) -> Trainer:
    """A trainer on the case's prompts, set up as `editing.edit.build_trainer` does."""
    blocks = (*case.layers, *case.read_layers)
    segment = kind(editable, min(blocks), max(blocks))
    dataset = EditDataset(editable, drawn.ours, segment, case.read_layers, case.config)
    # As in the published loop the test prompts are read after every round, and nothing else is
    # num_validations.
    pad = int(editable.tokenizer.pad_token_id)
    tested = make_batches([*drawn.tests[0], *drawn.tests[1]], case.batch, pad)
    inputs = [segment.capture_inputs(batch.ids) for batch in tested]

    @torch.no_grad()
    def judge() -> ValidationResult:
        for one in inputs:
            segment.forward(one, case.read_layers)
        return ValidationResult(0.0, 0.0)

    config = case.config
    attach(
        editable,
        case.layers,
        config.lora.target_modules,
        config.lora.r,
        config.lora.lora_alpha,
        config.seed,
    )
    return Trainer(editable, config, dataset, segment, case.read_layers, judge)


def fine_tuned(editable: EditableModel, case: Case, drawn: Prompts) -> AttackOutcome:
    """As many steps of supervised fine-tuning as a round has."""
    clock, config = Clock(editable.device), case.config
    attach(
        editable,
        range(editable.layout.depth),
        (),
        config.lora.r,
        config.lora.lora_alpha,
        config.seed,
    )
    optimizer = torch.optim.Adam(parameters(editable).values(), lr=config.train.learning_rate)
    pad = int(editable.tokenizer.pad_token_id)
    batches = make_batches(drawn.trained, case.batch, pad)
    once, total = clock.lap(), 0.0
    for batch in islice(cycle(batches), case.steps):
        loss = _next_tokens(editable, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return AttackOutcome(once, [clock.lap()], [total / case.steps], clock.cpu())


def _next_tokens(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    """The cross-entropy of every token but the first."""
    _, logits = forward_with_states(editable, batch.ids, ())
    real = batch.token_mask()[:, 1:]
    return F.cross_entropy(logits[:, :-1][real].float(), batch.ids[:, 1:][real].to(editable.device))


LOOPS: dict[str, Loop] = {
    "published": published,
    "full": played(Whole),
    "cut": played(Cut),
    "segment": played(Segment),
    "sft-step": fine_tuned,
}


def measure(case: Case, variant: str, device: str = "cpu") -> Measured:
    """Load the case's model and run a variant on it: once to warm up, then for the clock."""
    editable, loop = case.load(device), LOOPS[variant]
    drawn = draw_prompts(case, editable.model.config.vocab_size)
    runs: list[AttackOutcome] = []
    with Peak(editable.device) as peak:
        few = 8 if variant == "published" else case.batch
        short = replace(case, prompts=min(few, case.prompts), tests=min(4, case.tests), rounds=1)
        loop(editable, short, draw_prompts(short, editable.model.config.vocab_size))
        detach(editable)
        while len(runs) < _times(runs):
            runs.append(loop(editable, case, drawn))
            detach(editable)
    best = min(runs, key=lambda run: run.seconds)
    samples = len(best.rounds) * case.epochs * case.prompts
    return Measured(case.name, variant, samples, peak.bytes, len(runs), best)


def _times(runs: Sequence[AttackOutcome]) -> int:
    """How often to run: the first run says how long it takes."""
    if not runs:
        return 1
    return 3 if runs[0].seconds < SHORT else 2 if runs[0].seconds < LONG else 1
