"""How much of a device's matrix rate a training step of the segment uses, and of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import Clock, seat
from benchmarks.peak import Peak
from benchmarks.workload import Case, draw_prompts
from retouch.models.adapters import attach, detach
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.batch import make_batches

ROUNDS, STEPS = 3, 16  # the first round warms up


@dataclass(frozen=True)
class Load:
    """A training step of the segment at one size of batch.

    Attributes:
        batch: prompts.
        tokens: with padding.
        seconds: a step; the fastest round of the game over its steps, in which the states of the
            prompts are read too, and a discriminator is trained for one step.
        flops: matrix operations of the segment's forward and backward pass, twice the
            multiplications. Frozen weights have no gradients of their own, and none are counted.
        used: `flops` a second over the device's measured matrix rate.
        peak_bytes: memory at the most, less the weights outside the segment.
        needed_bytes: the segment's weights, the cached batch, and the activations that the backward
            pass keeps.
    """

    batch: int
    tokens: int
    seconds: float
    flops: int
    used: float
    peak_bytes: int
    needed_bytes: int


def matrix_rate(device: str, dtype: str, size: int) -> float:
    """Operations a second of a square matrix product; the fastest of five tries."""
    where = torch.device(device)
    a, b = (torch.randn(size, size, device=where, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        clock = Clock(where)
        for _ in range(4):
            a @ b
        best = min(best, clock.lap() / 4)
    return 2 * size**3 / best


def sweep(case: Case, device: str, batches: Sequence[int], matrix: int) -> list[Load]:
    """Steps at rising sizes of batch, until the device is full."""
    editable, rate = case.load(device), matrix_rate(device, case.dtype, matrix)
    found: list[Load] = []
    for size in batches:
        try:
            found.append(_loaded_with(editable, replace(case, prompts=size, batch=size), rate))
        except torch.OutOfMemoryError:
            break
        finally:
            detach(editable)
            if editable.device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _loaded_with(editable: EditableModel, case: Case, rate: float) -> Load:
    case = replace(case, tests=2, rounds=ROUNDS, epochs=STEPS, discriminator_epochs=1)
    flops, tokens, needed = _work(editable, case)
    best = float("inf")
    with Peak(editable.device) as peak:
        game = seat(editable, case, draw_prompts(case, editable.model.config.vocab_size)).train()
        for number in range(ROUNDS):
            clock = Clock(editable.device)
            next(game)
            if number:
                best = min(best, clock.lap() / STEPS)
    weights = _weights(editable, case)
    used = flops / best / rate
    return Load(case.batch, tokens, best, flops, used, peak.bytes + weights, needed)


def _weights(editable: EditableModel, case: Case) -> int:
    """Bytes of the segment's weights."""
    blocks = editable.blocks[min(case.layers) : max(case.read_layers) + 1]
    return sum(p.numel() * p.element_size() for block in blocks for p in block.parameters())


def _work(editable: EditableModel, case: Case) -> tuple[int, int, int]:
    """Of one step: matrix operations, tokens, and the bytes that it cannot do without."""
    weights = _weights(editable, case)
    rows = draw_prompts(case, editable.model.config.vocab_size).trained
    (batch,) = make_batches(rows, case.batch, int(editable.tokenizer.pad_token_id))
    segment = Segment(editable, min(case.layers), max(case.read_layers))
    inputs = segment.capture_inputs(batch.ids)
    config = case.config
    attach(
        editable,
        case.layers,
        config.lora.target_modules,
        config.lora.r,
        config.lora.lora_alpha,
        config.seed,
    )
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            states = segment.forward(inputs, case.read_layers)
            loss = torch.stack([s[:, -1].float().mean() for s in states.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    # A weight that is used transposed is no Parameter any more; one that is cached counts once.
    known = {p.untyped_storage().data_ptr() for p in editable.model.parameters()}
    cached = _cached(inputs)
    activations = sum(size for at, size in kept.items() if at not in known | set(cached))
    detach(editable)
    needed = weights + sum(cached.values()) + activations
    return counter.get_total_flops(), batch.ids.numel(), needed


def _cached(inputs: SegmentInputs) -> dict[int, int]:
    """The bytes of all that a batch's blocks are called with, each storage once."""
    found: dict[int, int] = {}

    def count(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple | list):
            for one in value:
                count(one)

    count(inputs.hidden)
    for call in inputs.calls:
        count(call.rest)
        count(tuple(call.named.values()))
    return found
