"""Estimate the memory, time and disk space of an edit."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retouch.core.errors import ModelError
from retouch.core.finding import Finding
from retouch.core.units import size_text, time_text
from retouch.models.memory_estimate import (
    FLOAT32_BYTES,
    forward_flops,
    generation_bytes,
    max_generation_rows,
    training_flops,
)
from retouch.models.offload import OffloadPlan
from retouch.preflight.hardware import Hardware
from retouch.preflight.memory import (
    MemoryPlan,
    Suggestion,
    check_memory,
    plan_memory,
    validation_rows,
)
from retouch.preflight.workload import TokenLengths, Workload
from retouch.task.examples import BATCH_SIZE
from retouch.task.task import TRACED_PAIRS

# Assumptions: the share of a large matrix product's speed that an edit's small ones reach, and the
# seconds in which the operations of one block are launched. Fitted on edits of pocket.
UTILISATION = 0.3
LAUNCH_SECONDS = {"cpu": 5e-4, "cuda": 3e-4}
# Bytes per second of streamed layers: an NVMe drive without its cache, and a PCIe link whose speed
# was not measured.
DISK_SPEED = 1e9
HOST_SPEED = 1e10
LARGE = 0.25  # share of the streamed bytes from which on a phase is named
STREAM_LESS = {
    "base responses": "lower `num_examples`, `num_retain` or `max_new_tokens`",
    "causal patching": "set `lora.layers_to_transform` and `discriminator.layers`",
    "validation": "lower `rounds`",
    "evaluation": "set `suites` to concept or none",
}


@dataclass(frozen=True)
class Phase:
    """A phase of an edit.

    Attributes:
        name: its name.
        flops: floating-point operations.
        block_runs: forward and backward passes of one block.
        streamed_bytes: weights that are streamed to the device.
        seconds: estimated duration; 0 without hardware.
    """

    name: str
    flops: float
    block_runs: int
    streamed_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Streaming:
    """Layers that are streamed to the device whenever they run.

    Attributes:
        source: where they are streamed from: `cpu` (host memory) or `disk`.
        resident: the layers that stay on the device, 0-based.
        layer_bytes: bytes of the streamed layers.
        total_bytes: bytes that are streamed in the whole edit.
        bytes_per_second: their speed.
        measured: whether the speed was measured, or is an assumption.
    """

    source: str
    resident: tuple[int, ...]
    layer_bytes: int
    total_bytes: int
    bytes_per_second: float
    measured: bool


@dataclass(frozen=True)
class Estimate:
    """The estimated resources of an edit.

    Attributes:
        memory: bytes by part.
        available: bytes of the device that the edit may use; None without a device.
        disk: bytes of the run directory.
        phases: the phases of the edit with their duration; empty without a device.
        streaming: the streamed layers; None if the whole model stays on the device.
        suggestions: settings with which the edit fits, if it does not.
    """

    memory: MemoryPlan
    available: int | None
    disk: int
    phases: tuple[Phase, ...] = ()
    streaming: Streaming | None = None
    suggestions: tuple[Suggestion, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Duration of the edit and its evaluation; None without a device."""
        return sum(phase.seconds for phase in self.phases) if self.phases else None


def estimate_edit(work: Workload, output_dir: Path) -> tuple[Estimate, list[Finding]]:
    """Estimate an edit whose run directory would be `output_dir`."""
    findings: list[Finding] = []
    try:
        offload = work.plan_offload()
    except ModelError as error:
        findings.append(Finding("error", error.code, error.message, error.hint))
        work, offload = work.with_settings({"max_device_memory": None}), None
    limit_too_low = bool(findings)
    memory, disk = plan_memory(work, offload), run_bytes(work)
    findings += _check_disk(disk, output_dir)
    hardware = work.hardware
    if hardware is None:
        return Estimate(memory, None, disk), findings
    found: list[Suggestion] = []
    streams = offload is not None and not offload.whole
    if not limit_too_low:
        problems, found = check_memory(work, memory, streams)
        findings += problems
    if not any(finding.level == "error" for finding in findings):
        findings += _check_cached_states(memory)
    if work.load.quantize != "none" and not work.checkpoint_bytes:
        findings.append(_quantisation(work))
    phases = estimate_phases(work, offload)
    streaming = None
    if streams and offload is not None:
        total = sum(phase.streamed_bytes for phase in phases)
        streaming = _streaming(offload, hardware, total)
        findings.append(_streaming_finding(streaming, phases, work.depth))
    estimate = Estimate(
        memory=memory,
        available=work.available,
        disk=disk,
        phases=tuple(_with_seconds(phase, work, hardware, streaming) for phase in phases),
        streaming=streaming,
        suggestions=tuple(found),
    )
    return estimate, findings


def estimate_phases(work: Workload, offload: OffloadPlan | None = None) -> list[Phase]:
    """The phases of an edit and of its evaluation, in order, without their duration."""
    method, train, validation, depth = work.method, work.train, work.validation, work.depth
    free = None if offload is None else offload.free_bytes
    streamed = offload.streamed_bytes if offload else (0,) * depth
    # Before it is known which layers are trained, none is resident.
    every = work.itemsize * sum(work.counts.blocks) if any(streamed) else 0
    total, active = sum(streamed), work.counts.active_total

    flops, passes = _add(*(_generation(work, one.all, free) for one in (train, validation)))
    phases = [Phase("base responses", flops, passes * depth, passes * every)]
    given = (method.discriminator.layers, method.lora.layers_to_transform)
    if work.paired and None in given:
        tokens = train.source.total * min(TRACED_PAIRS, train.source.count) // train.source.count
        runs = depth + 2
        flops = runs * forward_flops(active, tokens)
        phases.append(Phase("causal patching", flops, runs * depth, runs * every))
    phases.append(_activation_cache(work, streamed))
    phases.append(_discriminators(work))
    phases.append(_adapter(work, total))
    passes = validation.source.batches(validation_rows(work, validation.source, free))
    passes += 2 * validation.retain.batches(validation_rows(work, validation.retain, free, 2))
    passes *= method.train.rounds
    tokens = method.train.rounds * (validation.source.total + 2 * validation.retain.total)
    flops = forward_flops(active, tokens)
    phases.append(Phase("validation", flops, passes * depth, passes * total))
    if work.generated.count:
        flops, passes = _generation(work, work.generated, free)
        flops += forward_flops(active, work.compared.total)
        passes += work.compared.batches(validation_rows(work, work.compared, free, 2))
        # The base model and the edited one.
        phases.append(Phase("evaluation", 2 * flops, 2 * passes * depth, 2 * passes * total))
    return phases


def _add(*parts: tuple[float, int]) -> tuple[float, int]:
    return sum(flops for flops, _ in parts), sum(passes for _, passes in parts)


def _generation(work: Workload, texts: TokenLengths, free: int | None) -> tuple[float, int]:
    """Operations and passes through the whole model.

    A batch takes a pass for each token of its longest response.
    """
    row = generation_bytes(work.model, work.layout, texts.longest, work.itemsize)
    batches = texts.batches(max_generation_rows(free, BATCH_SIZE, row))
    longest = min(work.max_new_tokens, max(texts.responses, default=0))
    flops = forward_flops(sum(work.counts.active), texts.total)
    return flops + forward_flops(work.counts.head, sum(texts.responses)), batches * longest


def _activation_cache(work: Workload, streamed: tuple[int, ...]) -> Phase:
    """Every example runs up to the end of the segment once.

    Before that, `Segment.check` runs one row twice through the model and twice up to the segment.
    """
    train = work.train
    texts = train.all + train.target if work.paired else train.all
    runs = texts.batches(work.micro_batch_size)
    flops = forward_flops(sum(work.counts.active[: work.last + 1]), texts.total)
    bytes_streamed = (runs + 2) * sum(streamed[: work.first]) + 2 * sum(streamed)
    return Phase("activation cache", flops, runs * (work.last + 1), bytes_streamed)


def _discriminators(work: Workload) -> Phase:
    """Source examples run through the segment before the first round and after every one.

    The discriminators are trained on the states.
    """
    config, source = work.method.discriminator, work.train.source
    rounds, num_layers = work.method.train.rounds, len(work.layers.read)
    responses = source.responses + work.train.target.responses
    states = sum(min(length, config.positions) for length in responses)
    steps = config.warmup_steps + (rounds - 1) * config.steps_per_round
    if config.reset_each_round:
        steps = rounds * config.warmup_steps
    parameters = work.hidden_size * max(config.hidden_size, 1)
    segment = sum(work.counts.active[work.first : work.last + 1])
    flops = (rounds + 1) * forward_flops(segment, source.total)
    flops += 6.0 * parameters * states * steps * num_layers
    runs = (rounds + 1) * source.batches(work.micro_batch_size) * (work.last - work.first + 1)
    return Phase("discriminators", flops, runs + steps * num_layers)


def _adapter(work: Workload, streamed: int) -> Phase:
    """A generator step takes a source and a retain batch through the segment and back.

    Each gradient step of the latent attack takes the source batch once more; the supervised loss
    takes it through the whole model, whose streamed layers have `streamed` bytes.
    """
    train, loss, adversary = work.method.train, work.method.loss, work.method.adversary
    source, retain = (
        texts.total * min(train.batch_size, texts.count) // max(texts.count, 1)
        for texts in (work.train.source, work.train.retain)
    )
    attacks = adversary.latent_steps if adversary.latent_epsilon > 0 else 0
    segment = sum(work.counts.active[work.first : work.last + 1])
    tokens = (1 + attacks) * source + retain
    flops = training_flops(segment, work.adapter_parameters, tokens)
    micro_batches = -(-train.batch_size // work.micro_batch_size)
    passes = (1 + attacks + (retain > 0)) * micro_batches
    runs = 3 * passes * (work.last - work.first + 1)  # the backward pass counts twice
    streamed_bytes = 0
    if loss.sft_weight:
        flops += training_flops(work.counts.active_total, work.adapter_parameters, source)
        runs += 3 * micro_batches * work.depth
        streamed_bytes = micro_batches * streamed
    steps = train.rounds * train.steps_per_round
    return Phase("adapter", steps * flops, steps * runs, steps * streamed_bytes)


def _with_seconds(
    phase: Phase, work: Workload, hardware: Hardware, streaming: Streaming | None
) -> Phase:
    """The phase with the time of its operations, of reading weights, and of streaming."""
    computing = phase.flops / (hardware.flops_per_second * UTILISATION)
    block_bytes = work.itemsize * sum(work.counts.blocks) / work.depth
    launch = LAUNCH_SECONDS["cpu" if hardware.is_cpu else "cuda"]
    running = phase.block_runs * (block_bytes / hardware.bytes_per_second + launch)
    streaming_time = phase.streamed_bytes / streaming.bytes_per_second if streaming else 0.0
    seconds = computing + running + streaming_time
    return Phase(phase.name, phase.flops, phase.block_runs, phase.streamed_bytes, seconds)


def _streaming(offload: OffloadPlan, hardware: Hardware, total: int) -> Streaming:
    from_host = offload.source == "cpu"
    upload = hardware.upload_bytes_per_second
    return Streaming(
        source=offload.source,
        resident=tuple(sorted(offload.resident)),
        layer_bytes=sum(offload.streamed_bytes),
        total_bytes=total,
        bytes_per_second=(upload or HOST_SPEED) if from_host else DISK_SPEED,
        measured=from_host and upload > 0,
    )


def _streaming_finding(streaming: Streaming, phases: list[Phase], depth: int) -> Finding:
    """What is streamed, how long it takes, and in which phases most of it."""
    total, speed = streaming.total_bytes, streaming.bytes_per_second
    source = "host memory" if streaming.source == "cpu" else "the checkpoint's files"
    message = (
        f"{len(streaming.resident)} of {depth} layers stay on the device; the others, "
        f"{size_text(streaming.layer_bytes)}, are streamed from {source} whenever the whole model "
        f"runs: {size_text(total)} in total, about {time_text(total / speed)} at "
        f"{size_text(int(speed))}/s ({'measured' if streaming.measured else 'an assumption'})."
    )
    hints = [
        f"{STREAM_LESS[phase.name]} ({phase.name}: {phase.streamed_bytes / total:.0%})"
        for phase in sorted(phases, key=lambda phase: -phase.streamed_bytes)
        if phase.name in STREAM_LESS and phase.streamed_bytes >= LARGE * total
    ]
    hint = f"To stream less: {'; '.join(hints)}." if hints else ""
    return Finding("warning", "layers-streamed", message, hint)


def _quantisation(work: Workload) -> Finding:
    message = (
        f"With `quantize` {work.load.quantize} the weights take {size_text(work.weight_bytes)} "
        f"instead of {size_text(work.unquantised_bytes)}; the time of dequantising is not "
        "estimated."
    )
    hint = "To merge the adapter, load the base model unquantised."
    return Finding("warning", "weights-quantized", message, hint)


def run_bytes(work: Workload) -> int:
    """Bytes of a run directory: two checkpoints, adapter, discriminators and generations.

    A checkpoint has the adapter five times: weights, average, best, Adam's two moments.
    """
    hidden = max(work.method.discriminator.hidden_size, 1)
    adapter = FLOAT32_BYTES * work.adapter_parameters
    discriminators = 3 * FLOAT32_BYTES * len(work.layers.read) * (work.hidden_size + 2) * hidden
    texts = 2 * 4 * (work.generated.total + work.train.source.total) + 2**20  # 4 bytes a token
    return 2 * (5 * adapter + discriminators) + adapter + discriminators + texts


def _check_cached_states(memory: MemoryPlan) -> list[Finding]:
    """Check the disk space of cached activations that exceed the memory."""
    if not memory.disk_states:
        return []
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    message = f"{size_text(memory.disk_states)} of cached activations are on disk in {folder}"
    if memory.disk_states > free:
        hint = "Set TMPDIR to a larger disk, raise `activation_cache` or lower `num_retain`."
        message += f", {size_text(free)} available."
        return [Finding("error", "disk-full", message, hint)]
    return [Finding("warning", "states-on-disk", f"{message} and are read at every step.")]


def _check_disk(needed: int, output_dir: Path) -> list[Finding]:
    """Check the disk space of a run directory."""
    free = shutil.disk_usage(_existing_parent(output_dir)).free
    if needed <= free:
        return []
    message = f"The run directory needs {size_text(needed)}, {size_text(free)} available."
    return [Finding("error", "disk-full", message, "Free disk space, or set another `output_dir`.")]


def check_download(size: int) -> Finding:
    """Check the disk space of `size` bytes of weights in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    free = shutil.disk_usage(_existing_parent(Path(HF_HUB_CACHE))).free
    message = f"{size_text(size)} would be downloaded to {HF_HUB_CACHE}, {size_text(free)} free."
    if size > free:
        hint = "Free disk space, or set HF_HOME to a folder on a larger disk."
        return Finding("error", "disk-full", message, hint)
    return Finding("warning", "weights-download", message)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
