"""Measure the speed of the edit against the original loop and against whole forward passes.

    python -m benchmarks.speed [--only pocket,deep,depth] [--out build/speed.json]
    python -m benchmarks.speed --device cuda [--only llama-7b,qwen-14b,log,rate] [--small]

Variants, on the same prompts and rounds:

original
    ARE's loop as its repository implements it (`methods.are_original`): one prompt at a time
    through the whole model, new discriminators in each round, the states of all prompts read again
    one at a time. After each epoch the test prompts are run too, for a loss that is printed
    (train.py: `peft_model_finetune`). The stopping rule is left out.
full, truncated, segment
    The library's trainer, so the same batches, losses and steps. `full` runs the whole model with
    its head, `truncated` stops after the last layer that is read, and `segment` is the library's
    own way: the inputs of the first adapted layer are computed once.
sft-step
    For scale: supervised fine-tuning of a LoRA on all linear layers of all layers, with as many
    steps as a round of the others has.

`full`, `truncated` and `segment` must end in the same losses, or the benchmark stops. Each variant
runs in a process of its own after a warm-up: three times where a run takes less than 20 seconds,
twice below 40, and the fastest run counts. Memory is the peak beyond the loaded model. Ratios are
of values of one run of the benchmark.

`depth` measures a training step with the same segment in models of different depths. `log` is the
work of the published repository's log: 256 prompts and 100 tests, 36 rounds of two epochs, adapters
on the MLP of layers 9 to 13, layers 10 to 14 read; the original loop's time for it is extrapolated
from its rounds in the table. `rate` compares the arithmetic of the segment's training steps, as
torch's counter of operations has it, padding included, with a large matrix product of the same
dtype on the same device. `--small` runs tiny models in the place of the large ones: it shows that
the benchmark works, and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    SEED,
    Case,
    Clock,
    PeakMemory,
    Prompts,
    Target,
    build_case_trainer,
    case_prompts,
    describe_machine,
    examples_of,
    finish,
    in_new_process,
    in_this_process,
    llama,
    machine_text,
    matrix_rate,
    measurement_parser,
    middle,
    parse_names,
)
from retouch.core.config import LoraConfig
from retouch.methods import are_original
from retouch.models.adapters import attach, detach, parameters
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import record_activations, removing
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.activations import forward_with_states
from retouch.representations.batch import make_batches

SHORT, LONG = 20.0, 40.0  # seconds: below SHORT three runs, below LONG two, else one
EQUIVALENT = ("full", "truncated", "segment")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of a loss, relative

CPU_CASES = (
    Case("pocket", middle(8), middle(8)),
    Case("deep", middle(24), middle(24), llama(24, 512, 1408, 32000, 8), rounds=6),
)
QWEN = {**llama(32, 6144, 16384, 152064, 48), "model_type": "qwen2", "num_key_value_heads": 8}
LARGE = Case(
    "llama-7b",
    tuple(range(9, 14)),
    tuple(range(10, 15)),
    llama(32, 4096, 11008, 32000, 32),
    prompts=256,
    tests=100,
    batch_size=64,
    rounds=1,
    target_modules=("up_proj", "down_proj"),
    dtype="bfloat16",
)
GPU_CASES = (
    LARGE,
    # Less work of the same kind: what the original loop does with a prompt takes twice as long.
    replace(
        LARGE,
        name="qwen-14b",
        layers=middle(32),
        read_layers=middle(32),
        model=QWEN,
        prompts=128,
        tests=50,
    ),
)
LOG_ROUNDS, LOG_SECONDS = 36, 34 * 60  # of the published repository's log, on the authors' GPU
PARTS = ("depth", "log", "rate")  # beside the cases
RATE_RUNS = 5
RATE_SIZES = (1024, 8192)  # of a square matrix, on a CPU and on a GPU
DEPTHS, DEPTH_ROUNDS = (8, 16, 32, 64), 6  # the first round is a warm-up
HEADER = (
    "| case | variant | setup, s | round, s | total, s | CPU, s | samples/s | peak, MB "
    "| x original | x full |\n|---|---|---|---|---|---|---|---|---|---|"
)

Record = dict[str, Any]
Run = Callable[..., Any]
"""Runs a function with arguments: `in_new_process` or `in_this_process`."""


class WholeModel(Segment):
    """A segment that runs the whole model every time, its head included."""

    @torch.no_grad()
    def capture(
        self,
        ids: torch.Tensor,
        layers: Sequence[int],
        packing: Mapping[str, Any] | None = None,
    ) -> tuple[SegmentInputs, dict[int, torch.Tensor]]:
        """Keep the ids `[rows, tokens]`; nothing is computed in advance."""
        inputs = SegmentInputs(ids.to(self._editable.device), ())
        return inputs, self.forward(inputs, layers) if layers else {}

    def forward(self, inputs: SegmentInputs, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of layers; gradients flow."""
        return forward_with_states(self._editable, inputs.hidden, layers)[0]

    @torch.no_grad()
    def forward_states(
        self,
        ids: torch.Tensor,
        layers: Sequence[int],
        packing: Mapping[str, Any] | None = None,
    ) -> dict[int, torch.Tensor]:
        """The same for token ids, without gradients."""
        return self.forward(self.capture_inputs(ids), layers)


class TruncatedModel(WholeModel):
    """A segment that runs the model from the ids on, up to the last layer of the segment."""

    def forward(self, inputs: SegmentInputs, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The outputs `[rows, tokens, hidden]` of layers; gradients flow."""

        def stop(*_: Any) -> None:
            raise _EndOfPass

        editable = self._editable
        with record_activations(editable, layers, gradients=True) as states:
            handle = editable.blocks[self.last].register_forward_hook(stop)
            with removing([handle]), suppress(_EndOfPass):
                editable.model(input_ids=inputs.hidden, use_cache=False)
        return states


class _EndOfPass(Exception):
    """Ends a forward pass."""


@dataclass(frozen=True)
class Timing:
    """One run of a variant.

    Attributes:
        setup: seconds before the first round.
        rounds: seconds of each round.
        losses: the mean loss of each round.
        cpu: seconds of processor time on all cores; other load on the machine does not raise it.
    """

    setup: float
    rounds: list[float]
    losses: list[float]
    cpu: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.setup + sum(self.rounds)

    @property
    def round(self) -> float:
        """Mean seconds of a round."""
        return sum(self.rounds) / len(self.rounds)


@dataclass(frozen=True)
class Measurement:
    """A variant on a case: its fastest run, and the peak memory of all runs."""

    variant: str
    peak_bytes: int
    runs: int
    best: Timing


Variant = Callable[[EditableModel, Case, Prompts], Timing]


def original(editable: EditableModel, case: Case, prompts: Prompts) -> Timing:
    """ARE's original loop, all rounds."""
    clock, layers, settings = Clock(editable.device), case.read_layers, original_settings(case)
    ids, labels = are_original.labelled_prompts(examples_of(prompts.source, prompts.target))
    test_ids, test_labels = are_original.labelled_prompts(examples_of(*prompts.tests))
    attach(editable, case.layers, case.method.lora, SEED)
    weights, read = list(parameters(editable).values()), partial(_last_state, editable, layers)
    states = are_original.last_states(read, ids)
    discriminator = are_original.fit_discriminator(states, labels, settings, SEED)
    setup, laps, losses = clock.lap(), [], []
    for number in range(1, case.rounds + 1):
        loss = are_original.train_generator(weights, read, ids, discriminator, settings)
        losses.append(loss)
        for _ in range(settings.epochs):
            _test_loss(read, test_ids, test_labels.to(editable.device), discriminator)
        states = are_original.last_states(read, ids)
        discriminator = are_original.fit_discriminator(states, labels, settings, number)
        test_states = are_original.last_states(read, test_ids)
        are_original.accuracy(discriminator, test_states, test_labels)
        laps.append(clock.lap())
    return Timing(setup, laps, losses, clock.cpu())


def original_settings(case: Case) -> are_original.AreOriginalSettings:
    """The original loop's constants with a case's amount of work."""
    return are_original.AreOriginalSettings(
        learning_rate=case.method.train.learning_rate,
        rounds=case.rounds,
        epochs=case.epochs,
        target_modules=case.target_modules,
        discriminator_epochs=case.discriminator_epochs,
    )


def _last_state(editable: EditableModel, layers: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
    """The states of a prompt's last token, from a run of the whole model, as in the repository.

    model.py: `CombinedModel.forward`.
    """
    states = editable.model(
        input_ids=ids.to(editable.device), output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([states[layer + 1][:, -1] for layer in layers], -1).float()


@torch.no_grad()
def _test_loss(
    read: Callable[[torch.Tensor], torch.Tensor],
    prompts: Sequence[torch.Tensor],
    labels: torch.Tensor,
    discriminator: torch.nn.Module,
) -> float:
    """The original loop's loss on the test prompts, one at a time."""
    losses = [
        F.cross_entropy(discriminator(read(ids)), label[None])
        for ids, label in zip(prompts, labels, strict=True)
    ]
    return float(torch.stack(losses).mean())


def trained_with(kind: type[Segment]) -> Variant:
    """The library's training with this kind of segment."""

    def variant(editable: EditableModel, case: Case, prompts: Prompts) -> Timing:
        clock = Clock(editable.device)
        trainer = build_case_trainer(editable, case, prompts, kind)
        setup, laps, losses = clock.lap(), [], []
        for event in trainer.train():
            laps.append(clock.lap())
            losses.append(event.losses["adversarial"])
        return Timing(setup, laps, losses, clock.cpu())

    return variant


def sft_steps(editable: EditableModel, case: Case, prompts: Prompts) -> Timing:
    """As many steps of supervised fine-tuning, on every token, as a round has."""
    clock = Clock(editable.device)
    attach(editable, range(editable.layout.depth), LoraConfig(r=8, lora_alpha=8.0), SEED)
    learning_rate = case.method.train.learning_rate
    optimizer = torch.optim.Adam(parameters(editable).values(), lr=learning_rate)
    batches = make_batches(prompts.trained, case.batch_size, editable.tokenizer.pad_token_id)
    setup, total = clock.lap(), 0.0
    for batch in islice(cycle(batches), case.steps):
        _, logits = forward_with_states(editable, batch.ids, ())
        real, tokens = batch.token_mask()[:, 1:], batch.ids[:, 1:]
        predicted = logits[:, :-1][real].float()
        loss = F.cross_entropy(predicted, tokens[real].to(predicted.device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return Timing(setup, [clock.lap()], [total / case.steps], clock.cpu())


VARIANTS: dict[str, Variant] = {
    "original": original,
    "full": trained_with(WholeModel),
    "truncated": trained_with(TruncatedModel),
    "segment": trained_with(Segment),
    "sft-step": sft_steps,
}


def measure(case: Case, name: str, device: str = "cpu") -> Measurement:
    """Load the model of a case and run a variant on it, after a short run as a warm-up."""
    editable, variant = case.load(device), VARIANTS[name]
    prompts = case_prompts(case, editable)
    runs: list[Timing] = []
    with PeakMemory(editable.device) as peak:
        count = min(8 if name == "original" else case.batch_size, case.prompts)
        short = replace(case, prompts=count, tests=min(4, case.tests), rounds=1)
        variant(editable, short, case_prompts(short, editable))
        detach(editable)
        while len(runs) < _num_runs(runs):
            runs.append(variant(editable, case, prompts))
            detach(editable)
    return Measurement(name, peak.bytes, len(runs), min(runs, key=lambda run: run.seconds))


def _num_runs(runs: Sequence[Timing]) -> int:
    if not runs:
        return 1
    return 3 if runs[0].seconds < SHORT else 2 if runs[0].seconds < LONG else 1


def measure_case(
    case: Case,
    device: str,
    run: Run = in_new_process,
    variants: Sequence[str] = tuple(VARIANTS),
    show: Callable[[str], None] = print,
) -> list[Record]:
    """Measure the variants of a case, a row of the table after each; the original loop first.

    Raises:
        ValueError: variants that compute the same end in different losses.
    """
    records: list[Record] = []
    timings: dict[str, Timing] = {}
    for name in variants:
        measurement = run(measure, case, name, device)
        timings[name] = measurement.best
        records.append(record_of(measurement, timings, case))
        show(row(records[-1]))
    check_losses(records, TOLERANCE[case.dtype])
    return records


def record_of(measurement: Measurement, timings: Mapping[str, Timing], case: Case) -> Record:
    """The record of a measurement; `timings` are those of the case's variants so far."""
    best, is_sft = measurement.best, measurement.variant == "sft-step"
    # Fine-tuning does different work, so it has no ratio.
    ratios = {} if is_sft else {name: one.seconds / best.seconds for name, one in timings.items()}
    return {
        "case": case.name,
        "variant": measurement.variant,
        "seconds": best.seconds,
        "samples_per_second": len(best.rounds) * case.epochs * case.prompts / best.seconds,
        "peak_bytes": measurement.peak_bytes,
        "ratio_to_original": ratios.get("original"),
        "ratio_to_full": ratios.get("full"),
        "setup_seconds": best.setup,
        "round_seconds": best.round,
        "step_seconds": sum(best.rounds) / case.steps if is_sft else None,
        "cpu_seconds": best.cpu,
        "rounds": len(best.rounds),
        "runs": measurement.runs,
        "losses": best.losses,
    }


def row(record: Record) -> str:
    """A row of the table."""

    def number(key: str, digits: str, unit: float = 1) -> str:
        return "" if record.get(key) is None else format(record[key] / unit, digits)

    step = number("step_seconds", ".4f")
    columns = [
        record["case"],
        record["variant"] + (f" ({step} s)" if step else ""),
        number("setup_seconds", ".2f"),
        number("round_seconds", ".2f"),
        number("seconds", ".2f"),
        number("cpu_seconds", ".2f"),
        number("samples_per_second", ".1f"),
        number("peak_bytes", ".0f", 1e6),
        number("ratio_to_original", ".2f"),
        number("ratio_to_full", ".2f"),
    ]
    return f"| {' | '.join(columns)} |"


def check_losses(records: Sequence[Record], tolerance: float) -> str:
    """Check that the equivalent variants of a case end in the same losses; a sentence about it.

    Raises:
        ValueError: they do not.
    """
    case = records[0]["case"]
    losses = {r["variant"]: r["losses"] for r in records if r["variant"] in EQUIVALENT}
    if len(losses) < 2:
        return ""
    rounds = list(zip(*losses.values(), strict=True))
    error = max((max(values) - min(values)) / max(map(abs, values)) for values in rounds)
    if not all(math.isfinite(loss) for values in rounds for loss in values) or error > tolerance:
        raise ValueError(
            f"{case}: {', '.join(losses)} should compute the same, but their losses differ by up "
            f"to {error:.2g}: {losses}."
        )
    last = ", ".join(f"{name} {values[-1]:.6f}" for name, values in losses.items())
    return f"{case}: same losses within {tolerance:g} (largest difference {error:.1g}): {last}."


def depth_case(depth: int) -> Case:
    """A narrow Llama with four layers in its segment and hardly any discriminator training."""
    layers, model = middle(depth), llama(depth, 256, 704, 1024, 4)
    case = Case(f"depth-{depth}", layers, layers, model, prompts=32, tests=2, batch_size=16)
    return replace(case, rounds=DEPTH_ROUNDS, epochs=4, discriminator_epochs=1)


def measure_depths(device: str, depths: Sequence[int] = DEPTHS) -> list[Record]:
    """A training step with the same segment in models of different depths, the fastest round's.

    A round includes reading the states and one discriminator step. The models take turns round by
    round, so that load on the machine affects all of them.
    """
    trainings = {}
    for depth in depths:
        case = depth_case(depth)
        editable = case.load(device)
        trainings[depth] = build_case_trainer(editable, case, case_prompts(case, editable)).train()
    best = dict.fromkeys(depths, float("inf"))
    for number in range(DEPTH_ROUNDS):
        for depth, training in trainings.items():
            began = time.perf_counter()
            next(training)
            if number:
                seconds = (time.perf_counter() - began) / depth_case(depth).steps
                best[depth] = min(best[depth], seconds)
    return [
        {
            "case": "depth",
            "variant": f"{depth} layers",
            "seconds": seconds,
            "step_seconds": seconds,
            "samples_per_second": depth_case(depth).batch_size / seconds,
            "peak_bytes": None,
            "ratio_to_original": None,
        }
        for depth, seconds in best.items()
    ]


def measure_rate(case: Case, device: str) -> Record:
    """How fast the segment's training steps compute, beside a large matrix product.

    The steps are those of a round after the first: forward passes, backward passes and updates of
    the adapter, without the training of the discriminators.
    """
    editable = case.load(device)
    trainer = build_case_trainer(editable, replace(case, rounds=3), case_prompts(case, editable))
    next(trainer.train())
    with FlopCounterMode(display=False) as counter:
        trainer._train_generator()
    clock, seconds = Clock(editable.device), []
    for _ in range(RATE_RUNS):
        clock.lap()
        trainer._train_generator()
        seconds.append(clock.lap())
    best = min(seconds)
    return {
        "case": f"{case.name}-rate",
        "variant": "segment",
        "seconds": best,
        "step_seconds": best / case.steps,
        "samples_per_second": case.steps * case.batch_size / best,
        "peak_bytes": None,
        "ratio_to_original": None,
        "flops": counter.get_total_flops(),
        "rate": counter.get_total_flops() / best,
        "matrix_rate": matrix_rate(device, case.dtype, RATE_SIZES[device != "cpu"]),
    }


def rate_text(record: Record) -> str:
    """The rate of a case's training steps beside that of a matrix product."""
    own, matrix = record["rate"] / 1e12, record["matrix_rate"] / 1e12
    name = record["case"].removesuffix("-rate")
    return (
        f"{name}: steps at {own:.3g} TFLOP/s, a matrix product at {matrix:.3g}: {own / matrix:.0%}."
    )


def small(case: Case) -> Case:
    """A case with a tiny model and little work."""
    model = {**case.model, **llama(4, 64, 128, 128, 4)}
    tiny = replace(case, name=f"small-{case.name}", model=model, layers=(1, 2), read_layers=(1, 2))
    return replace(tiny, prompts=8, tests=4, batch_size=4, discriminator_epochs=2, dtype="float32")


def log_text(record: Record, records: Sequence[Record], case: Case) -> str:
    """The time of the log's work beside the authors' and the original loop's, extrapolated."""
    text = f"The log's work: {record['seconds']:.1f} s; its authors needed about {LOG_SECONDS} s"
    for one in records:
        if (one["case"], one["variant"]) == (case.name, "original"):
            seconds = one["setup_seconds"] + LOG_ROUNDS * one["round_seconds"]
            text += f", the original loop here about {seconds:.0f} s (extrapolated)"
    return f"{text}."


def targets_of(records: Sequence[Record]) -> Iterator[Target]:
    """The targets that the records have values for."""
    found = {(record["case"], record["variant"]): record for record in records}
    if deep := found.get(("deep", "segment")):
        yield Target("deep: segment against the original loop", deep["ratio_to_original"], 25)
        yield Target("deep: segment against full passes", deep["ratio_to_full"], 4)
    shallow, deeper = found.get(("depth", "16 layers")), found.get(("depth", "64 layers"))
    if shallow and deeper:
        ratio = deeper["seconds"] / shallow["seconds"]
        yield Target("step of 64 layers against 16", ratio, 1.1, higher=False)
    for (case, variant), record in found.items():
        if variant != "segment":
            continue
        if case.endswith("-log"):
            yield Target("the log's work, s", record["seconds"], 45, higher=False)
        elif case.endswith("-rate"):
            share = record["rate"] / record["matrix_rate"]
            yield Target(f"{case}: training steps, of a matrix product's rate", share, 0.35)
        elif case in {one.name for one in GPU_CASES}:
            if record["ratio_to_original"]:
                ratio = record["ratio_to_original"]
                yield Target(f"{case}: segment against the original loop", ratio, 40)
            memory = record["peak_bytes"] / 2**30
            yield Target(f"{case}: memory beyond the model, GiB", memory, 6, higher=False)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = measurement_parser(__doc__, "build/speed.json")
    parser.add_argument("--variants", default="", help=f"of {', '.join(VARIANTS)}")
    options = parser.parse_args(words)
    variants = parse_names(parser, "--variants", options.variants, list(VARIANTS))
    cases = {case.name: case for case in (*CPU_CASES, *GPU_CASES)}
    defaults = [case.name for case in GPU_CASES] + ["log", "rate"]
    if options.device == "cpu":
        defaults = [case.name for case in CPU_CASES] + ["depth"]
    only = parse_names(parser, "--only", options.only, [*cases, *PARTS]) or defaults
    run = in_new_process
    if options.small:  # starting a process would take longer than the work
        cases, run = {name: small(case) for name, case in cases.items()}, in_this_process
    machine, records, notes = describe_machine(options.device), [], []
    print(machine_text(machine), HEADER, sep="\n")
    for name, case in cases.items():
        if name in only:
            measured = measure_case(case, options.device, run, variants or list(VARIANTS))
            records += measured
            notes.append(check_losses(measured, TOLERANCE[case.dtype]))
    if "depth" in only:
        measured = measure_depths(options.device)
        print(*map(row, measured), sep="\n")
        records += measured
    if "log" in only:
        llama_7b = cases["llama-7b"]
        work = replace(llama_7b, name=f"{llama_7b.name}-log", rounds=LOG_ROUNDS)
        measured = measure_case(work, options.device, run, ["segment"])
        notes.append(log_text(measured[0], records, llama_7b))
        records += measured
    if "rate" in only:
        for case in GPU_CASES:
            if case.name in only or not {one.name for one in GPU_CASES} & set(only):
                record = run(measure_rate, cases[case.name], options.device)
                notes.append(rate_text(record))
                records.append(record)
    print("\n(In parentheses: a training step.)", *notes, sep="\n")
    finish(options.out, machine, records, list(targets_of(records)))


if __name__ == "__main__":
    main()
