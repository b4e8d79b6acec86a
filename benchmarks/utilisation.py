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
from retouch.models.load import LoadedModel
from retouch.models.segment import Caught, Segment
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
    loaded, rate = case.load(device), matrix_rate(device, case.dtype, matrix)
    found: list[Load] = []
    for size in batches:
        try:
            found.append(_loaded_with(loaded, replace(case, prompts=size, batch=size), rate))
        except torch.OutOfMemoryError:
            break
        finally:
            detach(loaded)
            if loaded.device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def _loaded_with(loaded: LoadedModel, case: Case, rate: float) -> Load:
    case = replace(case, tests=2, rounds=ROUNDS, epochs=STEPS, discriminator_epochs=1)
    flops, tokens, needed = _work(loaded, case)
    best = float("inf")
    with Peak(loaded.device) as peak:
        game = seat(loaded, case, draw_prompts(case, loaded.model.config.vocab_size)).play()
        for number in range(ROUNDS):
            clock = Clock(loaded.device)
            next(game)
            if number:
                best = min(best, clock.lap() / STEPS)
    weights = _weights(loaded, case)
    used = flops / best / rate
    return Load(case.batch, tokens, best, flops, used, peak.bytes + weights, needed)


def _weights(loaded: LoadedModel, case: Case) -> int:
    """Bytes of the segment's weights."""
    blocks = loaded.blocks[min(case.layers) : max(case.taps) + 1]
    return sum(p.numel() * p.element_size() for block in blocks for p in block.parameters())


def _work(loaded: LoadedModel, case: Case) -> tuple[int, int, int]:
    """Of one step: matrix operations, tokens, and the bytes that it cannot do without."""
    weights = _weights(loaded, case)
    rows = draw_prompts(case, loaded.model.config.vocab_size).trained
    (batch,) = make_batches(rows, case.batch, int(loaded.tokenizer.pad_token_id))
    segment = Segment(loaded, min(case.layers), max(case.taps))
    caught = segment.catch(batch.ids)
    config = case.config
    attach(loaded, case.layers, config.modules, config.rank, config.alpha, config.seed)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            states = segment.run(caught, case.taps)
            loss = torch.stack([s[:, -1].float().mean() for s in states.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    # A weight that is used transposed is no Parameter any more; one that is cached counts once.
    known = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}
    cached = _cached(caught)
    activations = sum(size for at, size in kept.items() if at not in known | set(cached))
    detach(loaded)
    needed = weights + sum(cached.values()) + activations
    return counter.get_total_flops(), batch.ids.numel(), needed


def _cached(caught: Caught) -> dict[int, int]:
    """The bytes of all that a batch's blocks are called with, each storage once."""
    found: dict[int, int] = {}

    def count(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple | list):
            for one in value:
                count(one)

    count(caught.hidden)
    for call in caught.calls:
        count(call.rest)
        count(tuple(call.named.values()))
    return found
