"""What options make of an edit's memory: bits of the weights, a limit of the device, rows at once.

What is foreseen here rests on the arithmetic that the edit itself goes by: `OffloadPlan` says which
blocks stay on the device, on a model that has shapes and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from retouch.core.errors import ModelError
from retouch.core.units import size_text
from retouch.models.memory_estimate import quantised_bytes
from retouch.models.offload import OffloadPlan
from retouch.preflight.hardware import Machine
from retouch.preflight.memory import Frame, Memory, memory
from retouch.preflight.workload import Workload


@dataclass(frozen=True)
class Situation:
    """An edit, the model and the machine that it meets.

    Attributes:
        work: the edit.
        frame: the model before its weights.
        machine: where it would run; None where there is no such device.
        checkpoint: bytes of the weights, where the checkpoint itself is quantised; else 0.
    """

    work: Workload
    frame: Frame
    machine: Machine | None
    checkpoint: int

    @property
    def budget(self) -> int | None:
        """Bytes of the device that are to be had: what is free, or less where a limit is set."""
        if self.machine is None:
            return None
        return min(self.machine.free, self.work.config.load.max_device_bytes or self.machine.free)

    @property
    def whole(self) -> int:
        """Bytes of all weights as they are editable without any option."""
        return self.checkpoint or self.work.counts.total * self.work.itemsize

    def under(self, **settings: Any) -> Situation:
        """The same with other settings of the edit."""
        config = self.work.config.model_copy(update=settings)
        return replace(self, work=replace(self.work, config=config))


@dataclass(frozen=True)
class Held:
    """What an edit holds.

    Attributes:
        work: the edit, with what comes by and what room is left.
        memory: bytes on the device.
        offload_plan: where the model's parts are, where the device has a limit.
    """

    work: Workload
    memory: Memory
    offload_plan: OffloadPlan | None

    @property
    def streams(self) -> bool:
        """Whether blocks come by."""
        return any(self.work.streamed)


def hold(here: Situation) -> Held:
    """What an edit holds with the options it has.

    Raises:
        ModelError: what has to stay on the device does not fit into its limit.
    """
    work, frame, config = here.work, here.frame, here.work.config
    offload_plan, weights = None, here.whole
    if config.load.max_device_bytes is not None:
        device = torch.device("cpu") if here.machine is None else here.machine.device
        offload_plan = OffloadPlan(
            frame.model, frame.layout, device, config.load.max_device_bytes, work.itemsize
        )
        offload_plan.keep_on_device(frame.model, range(work.first, work.last + 1))
        work = replace(work, streamed=offload_plan.streamed_bytes, room=offload_plan.free_bytes)
        weights = offload_plan.weights
    elif config.load.quantize != "none" and not here.checkpoint:
        weights = quantised_bytes(frame.model, config.load.quantize, work.itemsize)
    return Held(work, memory(work, frame, weights, here.machine), offload_plan)


def halved(here: Situation, held: Held) -> int | None:
    """The rows at once that a GPU has room for, down to which the edit goes by itself.

    None where it does not: on the CPU, where memory that runs out is no error that can be inputs.
    """
    machine, budget = here.machine, here.budget
    if machine is None or budget is None or machine.device.type == "cpu":
        return None
    for rows in _halves(here.work.at_once):
        part = hold(here.under(at_once=rows)).memory
        # Responses are halved besides, by and by to one row.
        playing = replace(part, generation=0)
        if playing.peak <= budget:
            return rows
    return None


def ways(here: Situation) -> list[str]:
    """The options with which the edit would fit, each with what it would take then."""
    return list(_ways(here))


def _ways(here: Situation) -> Iterator[str]:
    config, budget = here.work.config, here.budget
    assert budget is not None
    if config.load.max_device_memory is not None:
        yield from _fitting(here, "")
        return
    if hold(here).memory.weights <= budget:
        yield from _fitting(here, "")
    if here.work.itemsize == 4:
        half = replace(here, work=replace(here.work, itemsize=2))
        yield from _fitting(half, "--dtype bfloat16")
    if config.load.fsdp or config.load.quantize != "none":
        return
    if not here.checkpoint:
        for bits in ("8bit", "4bit"):
            found = list(_fitting(here.under(quantize=bits), f"--quantize {bits}"))
            yield from found
            if found:
                break
    size = _plain_size(budget)
    yield from _fitting(here.under(device_memory=size), f"--device-memory {size}")


def _fitting(here: Situation, option: str) -> Iterator[str]:
    """What it would take, with so few rows at once as fit; nothing where not even one does."""
    budget = here.budget
    assert budget is not None
    for rows in _halves(here.work.at_once):
        try:
            held = hold(here.under(at_once=rows))
        except ModelError:
            return
        if held.memory.peak <= budget:
            fewer = f"--at-once {rows}" if rows < here.work.at_once else ""
            named = " ".join(part for part in (option, fewer) if part)
            if not named:
                return  # as it is
            by = ", the blocks coming by" if held.streams else ""
            yield f"with {named} ({size_text(held.memory.peak)}{by})"
            return


def _halves(rows: int) -> Iterator[int]:
    """So many, then half as many, and so on down to one."""
    while rows > 1:
        yield rows
        rows = (rows + 1) // 2
    yield 1


def _plain_size(size: int) -> str:
    """A size as an option takes it, rounded down."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= 4 * unit:
            return f"{size // unit}{name}"
    return str(max(size, 1))
