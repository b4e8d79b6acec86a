"""What an edit would hold and take on a machine, and whether there is room for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retouch.core.errors import ModelError
from retouch.core.finding import Finding
from retouch.core.units import size_text, time_text
from retouch.preflight.fit import disk_fits, loading_fits, memory_fits, states_fit
from retouch.preflight.memory import Memory, disk_bytes
from retouch.preflight.suggestions import Held, Situation, halved, hold, ways
from retouch.preflight.workload import Foreseen, foresee, phases

# Bytes a second that come out of a checkpoint's files: an assumption, of an NVMe drive that does
# not have them in its cache. And to a device whose way from memory was not measured.
FROM_DISK = 1e9
FROM_MEMORY = 1e10
LARGE = 0.25  # the share of what comes by from which on a part of the edit is named
LESS = {
    "base responses": "fewer --labels and --retain or a lower --response-tokens",
    "causal patching": "--layers and --read_layers that name the blocks",
    "judge": "fewer --rounds",
    "measurement": "--measure own or nothing",
}


@dataclass(frozen=True)
class Streaming:
    """Blocks that come to the device whenever they run.

    Attributes:
        origin: where they come from: `cpu`, the machine's memory, or `disk`.
        stay: the blocks that stay on the device, 0-based.
        size: bytes of those that come by.
        all: bytes that come in the whole edit.
        speed: bytes that come in a second.
        measured: whether the speed was measured here, or is an assumption.
    """

    origin: str
    stay: tuple[int, ...]
    size: int
    all: int
    speed: float
    measured: bool


@dataclass(frozen=True)
class Outlook:
    """What is foreseen.

    Attributes:
        memory: bytes on the device.
        budget: bytes of it that are to be had; None where there is no device.
        disk: bytes of the run directory.
        phases: the parts of the edit with their seconds.
        streaming: what comes by; None where all of the model stays.
        findings: what was found on the way.
    """

    memory: Memory
    budget: int | None
    disk: int
    phases: tuple[Foreseen, ...]
    streaming: Streaming | None
    findings: tuple[Finding, ...]


def look_ahead(here: Situation, out: Path) -> Outlook:
    """Foresee an edit whose run directory would be `out`."""
    found: list[Finding] = []
    try:
        held = hold(here)
    except ModelError as error:
        found.append(Finding("error", "memory", error.message, error.hint))
        held = hold(here.under(device_memory=None))  # the rest, as if all of it stayed
    disk = disk_bytes(held.work)
    found += disk_fits(disk, out)
    machine, budget = here.machine, here.budget
    if machine is None or budget is None:
        return Outlook(held.memory, None, disk, (), None, tuple(found))
    if not found or found[0].code != "memory":
        found += _fits(here, held, budget)
    if not any(finding.level == "error" for finding in found):
        found += states_fit(held.memory)  # where they lie hangs on what is left beside the rest
    found += _quantising(here, held)
    parts, streaming = phases(held.work), None
    if held.streams:
        streaming = _streaming(here, held, sum(part.streamed for part in parts))
    speed = streaming.speed if streaming else FROM_DISK
    times = tuple(foresee(parts, machine, speed))
    if streaming:
        found.append(_coming_by(streaming, times, held))
    return Outlook(held.memory, budget, disk, times, streaming, tuple(found))


def _fits(here: Situation, held: Held, budget: int) -> list[Finding]:
    """Whether the device and the machine hold it."""
    machine, config = here.machine, here.work.config
    assert machine is not None
    short = held.memory.peak > budget
    fewer = halved(here, held) if short else None
    options = ways(here) if short and fewer is None else []
    found = [memory_fits(held.memory, budget, options, fewer)]
    # Quantised weights and those that come by go straight to where they belong.
    if machine.device.type != "cpu" and not held.streams and config.load.quantize == "none":
        found += loading_fits(held.memory.weights, machine.ram, here.work.itemsize == 4)
    return found


def _quantising(here: Situation, held: Held) -> list[Finding]:
    config = here.work.config
    if config.load.quantize == "none" or here.checkpoint:
        return []
    what = (
        f"In {config.load.quantize[0]} bits the weights take {size_text(held.memory.weights)} in place "
        f"of {size_text(here.whole)}; what unpacking them costs in time is not foreseen."
    )
    hint = "Merging the adapter takes the unquantised base: `retouch export --format merged`."
    return [Finding("warning", "quantised", what, hint)]


def _streaming(here: Situation, held: Held, total: int) -> Streaming:
    offload_plan, machine = held.offload_plan, here.machine
    assert offload_plan is not None
    assert machine is not None
    from_memory = offload_plan.origin == "cpu"
    measured = from_memory and machine.upload > 0
    speed = (machine.upload or FROM_MEMORY) if from_memory else FROM_DISK
    stay, size = tuple(sorted(offload_plan.resident)), sum(held.work.streamed)
    return Streaming(offload_plan.origin, stay, size, total, speed, measured)


def _coming_by(streaming: Streaming, times: tuple[Foreseen, ...], held: Held) -> Finding:
    """What comes by, how long that takes, and what takes most of it."""
    where = "the machine's memory" if streaming.origin == "cpu" else "the checkpoint's files"
    sure = "measured" if streaming.measured else "an assumption"
    what = (
        f"{len(streaming.stay)} of {held.work.depth} blocks stay on the device; the others, "
        f"{size_text(streaming.size)}, come one after the other out of {where} whenever the whole "
        f"model runs: {size_text(streaming.all)} in all, about "
        f"{time_text(streaming.all / streaming.speed)} at {size_text(int(streaming.speed))} a "
        f"second ({sure})."
    )
    large = [
        f"{LESS[part.phase.name]} ({part.phase.name}: {part.phase.streamed / streaming.all:.0%})"
        for part in sorted(times, key=lambda part: -part.phase.streamed)
        if part.phase.name in LESS and part.phase.streamed >= LARGE * streaming.all
    ]
    return Finding("warning", "memory", what, f"Less: {'; '.join(large)}." if large else "")
