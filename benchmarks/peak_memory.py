"""Measure the peak memory of the edit: under a device memory limit, and by batch size.

    python -m benchmarks.peak_memory [--only limit] [--out build/peak_memory.json]
    python -m benchmarks.peak_memory --device cuda [--only llama-7b,qwen-14b] [--small]

`limit` edits a random model from its files twice: whole, and with a device memory limit of half of
the model's size, so that most layers are offloaded (`models/offload.py`). On a CPU the device's
memory is that of the process.

The other cases run training steps of the segment at rising batch sizes, until the device is full.
The table shows each step's rate as a share of the measured rate of a product of two square
matrices, and its peak memory beside the memory that it cannot do without: the segment's weights,
the cached batch, and the activations that the backward pass saves. `--small` runs tiny models,
which shows that the benchmark works, and nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    SEED,
    Case,
    Clock,
    PeakMemory,
    Target,
    build_case_trainer,
    case_prompts,
    describe_machine,
    finish,
    in_new_process,
    in_this_process,
    llama,
    machine_text,
    matrix_rate,
    measurement_parser,
    middle,
    parse_names,
    random_model,
)
from benchmarks.speed import GPU_CASES, Record, Run, small
from retouch.core.config import LoadConfig
from retouch.models.adapters import attach, detach
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.batch import make_batches

LIMITED = Case("limit", middle(48), middle(48), llama(48, 512, 1408, 4096, 8), rounds=3)
SMALL_LIMITED = replace(small(LIMITED), model=llama(48, 64, 128, 2560, 4))
BATCH_SIZES, MATRIX_SIZE = (16, 32, 64, 128, 256, 512, 1024, 2048), 8192
SMALL_BATCH_SIZES, SMALL_MATRIX_SIZE = (4, 8), 256
ROUNDS, STEPS = 3, 16  # the first round is a warm-up
LIMIT_HEADER = (
    "| case | variant | weights, MB | limit, MB | peak, MB | total, s |\n|---|---|---|---|---|---|"
)
STEP_HEADER = (
    "| case | batch size | tokens | step, s | samples/s | TFLOP/s | of the matrix rate | peak, GB "
    "| needed, GB |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class LimitedEdit:
    """One edit of a model from its files.

    Attributes:
        variant: `whole` or `half`.
        weight_bytes: the size of the model.
        limit_bytes: the device memory limit; None where the whole model was loaded.
        peak_bytes: the peak beyond the memory of the process before it loaded the model.
        seconds: of loading and editing.
    """

    variant: str
    weight_bytes: int
    limit_bytes: int | None
    peak_bytes: int
    seconds: float


def edit_limited(case: Case, share: float | None, device: str = "cpu") -> LimitedEdit:
    """Edit a model with a limit of `share` of its own size; None loads the whole model."""
    with tempfile.TemporaryDirectory(prefix="retouch-") as folder:
        weight_bytes = _save_random(case, Path(folder))
        limit = None if share is None else int(share * weight_bytes)
        config = LoadConfig(
            device=device,
            dtype=case.dtype,
            max_device_memory=None if limit is None else f"{limit} B",
        )
        began = time.perf_counter()
        with PeakMemory(torch.device(device)) as peak:
            editable = load(folder, config)
            layers = (*case.layers, *case.read_layers)
            editable.keep_on_device(range(min(layers), max(layers) + 1))
            trainer = build_case_trainer(editable, case, case_prompts(case, editable))
            for _ in trainer.train():
                pass
        seconds = time.perf_counter() - began
    variant = "whole" if share is None else "half"
    return LimitedEdit(variant, weight_bytes, limit, peak.bytes, seconds)


def _save_random(case: Case, folder: Path) -> int:
    """Save a random model with the built-in one's tokenizer; the bytes of its weights."""
    model = random_model(case.model, "cpu", case.dtype).model
    model.save_pretrained(folder)
    load("pocket").tokenizer.save_pretrained(folder)
    return _num_bytes(model.parameters())


def _num_bytes(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def measure_limit(device: str, run: Run = in_new_process, case: Case = LIMITED) -> list[Record]:
    """Edit a model whole, and within half of its own size."""
    edits = [run(edit_limited, case, share, device) for share in (None, 0.5)]
    return [{"case": case.name, **asdict(edit)} for edit in edits]


def limit_row(record: Record) -> str:
    """A row of the table of limited edits."""
    sizes = [record[key] for key in ("weight_bytes", "limit_bytes", "peak_bytes")]
    texts = ["" if size is None else f"{size / 1e6:.0f}" for size in sizes]
    columns = [record["case"], record["variant"], *texts, f"{record['seconds']:.2f}"]
    return f"| {' | '.join(columns)} |"


@dataclass(frozen=True)
class TrainingStep:
    """A training step of the segment at one batch size.

    Attributes:
        batch_size: prompts.
        tokens: with padding.
        seconds: of a step: the fastest round over its steps, which includes reading the states and
            a discriminator step.
        flops: matrix operations of the segment's forward and backward pass, twice the
            multiplications. Frozen weights have no gradients, and none are counted.
        utilisation: operations per second as a share of the device's measured matrix rate.
        peak_bytes: the peak, without the weights outside of the segment.
        needed_bytes: the segment's weights, the cached batch and the saved activations.
    """

    batch_size: int
    tokens: int
    seconds: float
    flops: int
    utilisation: float
    peak_bytes: int
    needed_bytes: int


def measure_steps(
    case: Case, device: str, batch_sizes: Sequence[int], matrix_size: int
) -> list[TrainingStep]:
    """Measure training steps at rising batch sizes, until the device is full."""
    editable, rate = case.load(device), matrix_rate(device, case.dtype, matrix_size)
    steps: list[TrainingStep] = []
    for size in batch_sizes:
        try:
            steps.append(
                _measure_step(editable, replace(case, prompts=size, batch_size=size), rate)
            )
        except torch.OutOfMemoryError:
            break
        finally:
            detach(editable)
            if editable.device.type == "cuda":
                torch.cuda.empty_cache()
    return steps


def _measure_step(editable: EditableModel, case: Case, rate: float) -> TrainingStep:
    case = replace(case, tests=2, rounds=ROUNDS, epochs=STEPS, discriminator_epochs=1)
    flops, tokens, needed = _count_step(editable, case)
    best = float("inf")
    with PeakMemory(editable.device) as peak:
        training = build_case_trainer(editable, case, case_prompts(case, editable)).train()
        for number in range(ROUNDS):
            clock = Clock(editable.device)
            next(training)
            if number:
                best = min(best, clock.lap() / STEPS)
    return TrainingStep(
        batch_size=case.batch_size,
        tokens=tokens,
        seconds=best,
        flops=flops,
        utilisation=flops / best / rate,
        peak_bytes=peak.bytes + _segment_bytes(editable, case),
        needed_bytes=needed,
    )


def _segment_bytes(editable: EditableModel, case: Case) -> int:
    """Bytes of the segment's weights."""
    blocks = editable.blocks[min(case.layers) : max(case.read_layers) + 1]
    return _num_bytes(weight for block in blocks for weight in block.parameters())


def _count_step(editable: EditableModel, case: Case) -> tuple[int, int, int]:
    """Matrix operations and tokens of a step, and the bytes that it cannot do without."""
    weight_bytes = _segment_bytes(editable, case)
    chats = case_prompts(case, editable).trained
    (batch,) = make_batches(chats, case.batch_size, editable.tokenizer.pad_token_id)
    segment = Segment(editable, min(case.layers), max(case.read_layers))
    inputs = segment.capture_inputs(batch.ids)
    attach(editable, case.layers, case.method.lora, SEED)
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(record, lambda tensor: tensor):
            states = segment.forward(inputs, case.read_layers)
            loss = torch.stack([found[:, -1].float().mean() for found in states.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    # A transposed weight is no Parameter any more, and a cached tensor counts once.
    weights = {p.untyped_storage().data_ptr() for p in editable.model.parameters()}
    cached = _storages(inputs)
    activations = sum(size for at, size in saved.items() if at not in weights | set(cached))
    detach(editable)
    needed = weight_bytes + sum(cached.values()) + activations
    return counter.get_total_flops(), batch.ids.numel(), needed


def _storages(inputs: SegmentInputs) -> dict[int, int]:
    """The bytes of everything that a batch's blocks are called with, by storage."""
    found: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple | list):
            for one in value:
                count(one)

    count(inputs.hidden)
    for args in inputs.args:
        count(args.positional)
        count(tuple(args.keyword.values()))
    return found


def step_row(record: Record) -> str:
    """A row of the table of training steps."""
    columns = [
        record["case"],
        str(record["batch_size"]),
        str(record["tokens"]),
        f"{record['seconds']:.4f}",
        f"{record['batch_size'] / record['seconds']:.0f}",
        f"{record['flops'] / record['seconds'] / 1e12:.3g}",
        f"{record['utilisation']:.1%}",
        f"{record['peak_bytes'] / 1e9:.3f}",
        f"{record['needed_bytes'] / 1e9:.3f}",
    ]
    return f"| {' | '.join(columns)} |"


def targets_of(records: Sequence[Record]) -> Iterator[Target]:
    """The targets that the records have values for."""
    for record in records:
        if record.get("limit_bytes"):
            ratio = record["peak_bytes"] / record["limit_bytes"]
            yield Target("a model twice its limit: peak / limit", ratio, 1, higher=False)
    steps = [record for record in records if "utilisation" in record]
    for case in dict.fromkeys(record["case"] for record in steps):
        # The batch size with the highest utilisation, so that both values are of one step.
        of_case = [record for record in steps if record["case"] == case]
        best = max(of_case, key=lambda record: record["utilisation"])
        ratio = best["peak_bytes"] / best["needed_bytes"]
        yield Target(f"{case}: peak / needed", ratio, 1.25, higher=False)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = measurement_parser(__doc__, "build/peak_memory.json")
    options = parser.parse_args(words)
    cases = {case.name: case for case in GPU_CASES}
    defaults = ["limit"] if options.device == "cpu" else list(cases)
    only = parse_names(parser, "--only", options.only, ["limit", *cases]) or defaults
    run, matrix_size = in_new_process, MATRIX_SIZE
    batch_sizes: Sequence[int] = BATCH_SIZES
    if options.small:  # starting a process would take longer than the work
        cases, run = {name: small(case) for name, case in cases.items()}, in_this_process
        batch_sizes, matrix_size = SMALL_BATCH_SIZES, SMALL_MATRIX_SIZE
    machine, records = describe_machine(options.device), []
    print(machine_text(machine))
    if "limit" in only:
        case = SMALL_LIMITED if options.small else LIMITED
        records += measure_limit(options.device, run, case)
        print(LIMIT_HEADER, *map(limit_row, records), sep="\n")
    chosen = [case for name, case in cases.items() if name in only]
    if chosen:
        print(f"\n{STEP_HEADER}" if records else STEP_HEADER)
    for case in chosen:
        for step in run(measure_steps, case, options.device, batch_sizes, matrix_size):
            records.append({"case": case.name, **asdict(step)})
            print(step_row(records[-1]))
    finish(options.out, machine, records, list(targets_of(records)))


if __name__ == "__main__":
    main()
