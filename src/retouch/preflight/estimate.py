"""Estimate the resources of an edit: memory, duration by phase, streamed bytes, disk space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch.core.errors import ModelError
from retouch.core.finding import Finding
from retouch.core.units import size_text, time_text
from retouch.models.memory_estimate import (
    forward_flops,
    generation_bytes,
    kv_cache_bytes,
    max_generation_rows,
    training_flops,
)
from retouch.models.offload import OffloadPlan
from retouch.preflight.disk import check_cached_states, check_run, run_bytes
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
DISK_SPEED = 1e9  # bytes per second: an assumption, of an NVMe drive without its cache
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
        seconds: estimated duration.
        streamed_bytes: weights that are streamed to the device.
    """

    name: str
    seconds: float
    streamed_bytes: int


@dataclass(frozen=True)
class Streaming:
    """Layers that are streamed to the device whenever they run.

    Attributes:
        source: where they are streamed from: `cpu` (host memory) or `disk`.
        resident: the layers that stay on the device, 0-based.
        layer_bytes: bytes of the streamed layers.
        total_bytes: bytes that are streamed in the whole edit.
        bytes_per_second: their speed: measured from host memory, an assumption from disk.
    """

    source: str
    resident: tuple[int, ...]
    layer_bytes: int
    total_bytes: int
    bytes_per_second: float


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
    memory, disk, hardware = plan_memory(work, offload), run_bytes(work), work.hardware
    found: list[Suggestion] = []
    if hardware is not None and not findings:
        problems, found = check_memory(work, memory)
        findings += problems
    findings += check_run(disk, output_dir)
    if hardware is None:
        return Estimate(memory, None, disk), findings
    if not any(finding.level == "error" for finding in findings):
        findings += check_cached_states(memory)
    if work.load.quantize != "none" and not work.checkpoint_bytes:
        findings.append(_quantisation(work))
    phases = PhaseEstimator(work, offload, hardware).phases()
    streaming = None
    if memory.streams and offload is not None:
        streaming = Streaming(
            source=offload.source,
            resident=tuple(sorted(offload.resident)),
            layer_bytes=sum(offload.streamed_bytes),
            total_bytes=sum(phase.streamed_bytes for phase in phases),
            bytes_per_second=_streaming_speed(offload, hardware),
        )
        findings.append(_streaming_finding(streaming, phases, work.layout.depth))
    estimate = Estimate(
        memory=memory,
        available=work.available,
        disk=disk,
        phases=tuple(phases),
        streaming=streaming,
        suggestions=tuple(found),
    )
    return estimate, findings


def _streaming_speed(offload: OffloadPlan | None, hardware: Hardware) -> float:
    from_host = offload is not None and offload.source == "cpu"
    return hardware.upload_bytes_per_second if from_host else DISK_SPEED


class PhaseEstimator:
    """Estimates the duration of an edit's phases and the bytes that they stream."""

    def __init__(self, work: Workload, offload: OffloadPlan | None, hardware: Hardware) -> None:
        self._work, self._counts, self._hardware = work, work.counts, hardware
        self._free = None if offload is None else offload.free_bytes
        self._streamed = offload.streamed_bytes if offload else (0,) * work.layout.depth
        self._speed = _streaming_speed(offload, hardware)

    def phases(self) -> list[Phase]:
        """The phases of an edit and of its evaluation, in order."""
        phases = [
            self._base_responses(),
            self._causal_patching(),
            self._activation_cache(),
            self._training(),
            self._validation(),
            self._evaluation(),
        ]
        return [phase for phase in phases if phase is not None]

    def _phase(
        self, name: str, flops: float, block_runs: int, streamed: int, read: int = 0
    ) -> Phase:
        """A phase by its operations, runs of a block, streamed bytes, and bytes read besides."""
        hardware = self._hardware
        block = self._work.itemsize * sum(self._counts.blocks) / self._work.layout.depth
        launch = LAUNCH_SECONDS["cpu" if hardware.is_cpu else "cuda"]
        seconds = flops / (hardware.flops_per_second * UTILISATION)
        seconds += (block_runs * block + read) / hardware.bytes_per_second + block_runs * launch
        return Phase(name, seconds + streamed / self._speed, streamed)

    def _whole_model(
        self,
        name: str,
        flops: float,
        passes: int,
        read: int = 0,
        *,
        before_training: bool = False,
    ) -> Phase:
        """A phase that runs the whole model; before the training no layer is resident."""
        layer_bytes, depth = sum(self._streamed), self._work.layout.depth
        if before_training and layer_bytes:
            layer_bytes = self._work.itemsize * sum(self._counts.blocks)
        return self._phase(name, flops, passes * depth, passes * layer_bytes, read)

    def _generation(self, texts: TokenLengths) -> tuple[float, int, int]:
        """Operations, passes, and bytes of keys and values that are read and written.

        A batch takes a pass for each token of its longest response. Every new token reads the keys
        and values of the earlier ones, and copies them when its own are appended.
        """
        work, counts = self._work, self._counts
        row = generation_bytes(work.model, work.layout, texts.longest, work.itemsize)
        batches = texts.batches(max_generation_rows(self._free, BATCH_SIZE, row))
        longest = min(work.max_new_tokens, max(texts.responses, default=0))
        flops = forward_flops(sum(counts.active), texts.total)
        flops += forward_flops(counts.head, sum(texts.responses))
        lengths = zip(texts.prompts, texts.responses, strict=True)
        earlier = sum(response * (prompt + response // 2) for prompt, response in lengths)
        read = 3 * kv_cache_bytes(work.model.config, 1, earlier, work.itemsize)
        return flops, batches * longest, read

    def _passes(self, texts: TokenLengths, models: int = 1) -> int:
        """Passes of validation batches through one model or two."""
        return models * texts.batches(validation_rows(self._work, texts, self._free, models))

    def _base_responses(self) -> Phase:
        splits = (self._work.texts.train, self._work.texts.validation)
        costs = zip(*(self._generation(split.all) for split in splits), strict=True)
        flops, passes, read = map(sum, costs)
        return self._whole_model("base responses", flops, passes, read, before_training=True)

    def _causal_patching(self) -> Phase | None:
        work, method, source = self._work, self._work.method, self._work.texts.train.source
        given = (method.discriminator.layers, method.lora.layers_to_transform)
        if not work.paired or None not in given:
            return None
        passes = work.layout.depth + 2
        tokens = source.total * min(TRACED_PAIRS, source.count) // source.count
        flops = passes * forward_flops(self._counts.active_total, tokens)
        return self._whole_model("causal patching", flops, passes, before_training=True)

    def _activation_cache(self) -> Phase:
        """Every example runs up to the end of the segment once.

        Before, `Segment.check` runs one row twice through the model and twice up to the segment.
        """
        work, train, segment = self._work, self._work.texts.train, self._work.segment
        texts = train.all + train.target if work.paired else train.all
        passes = texts.batches(work.micro_batch_size)
        flops = forward_flops(sum(self._counts.active[: segment.stop]), texts.total)
        below, total = sum(self._streamed[: segment.start]), sum(self._streamed)
        streamed = (passes + 2) * below + 2 * total
        return self._phase("activation cache", flops, passes * segment.stop, streamed)

    def _training(self) -> Phase:
        """Steps of the generator and of the discriminators, which run in the segment.

        A generator step takes a source and a retain batch through the segment and back. A gradient
        step of the latent attack takes the source batch once more, and the supervised loss takes
        it through the whole model. The discriminators are trained on the states of the source
        examples, which run before the first round and after every one.
        """
        work, counts, segment = self._work, self._counts, self._work.segment
        train, adversary, fit = work.method.train, work.method.adversary, work.method.discriminator
        source, retain = work.texts.train.source, work.texts.train.retain
        source_tokens, retain_tokens = (
            one.total * min(train.batch_size, one.count) // max(one.count, 1)
            for one in (source, retain)
        )
        sources = 1 + (adversary.latent_steps if adversary.latent_epsilon > 0 else 0)
        active = sum(counts.active[i] for i in segment)
        trainable, tokens = work.adapter_parameters, sources * source_tokens + retain_tokens
        flops = training_flops(active, trainable, tokens)
        micro_batches, streamed = -(-train.batch_size // work.micro_batch_size), 0
        runs = 3 * micro_batches * (sources + (retain.count > 0)) * len(segment)
        if work.method.loss.sft_weight:
            flops += training_flops(counts.active_total, trainable, source_tokens)
            runs += 3 * micro_batches * work.layout.depth
            streamed = micro_batches * sum(self._streamed)
        steps = train.rounds * train.steps_per_round
        flops, runs = steps * flops, steps * runs

        fits = fit.warmup_steps + (train.rounds - 1) * fit.steps_per_round
        if fit.reset_each_round:
            fits = train.rounds * fit.warmup_steps
        responses = source.responses + work.texts.train.target.responses
        states = len(work.layers.read) * sum(min(one, fit.positions) for one in responses)
        flops += 6.0 * work.hidden_size * max(fit.hidden_size, 1) * states * fits
        flops += (train.rounds + 1) * forward_flops(active, source.total)
        runs += (train.rounds + 1) * source.batches(work.micro_batch_size) * len(segment)
        runs += fits * len(work.layers.read)
        return self._phase("training", flops, runs, steps * streamed)

    def _validation(self) -> Phase:
        rounds, texts = self._work.method.train.rounds, self._work.texts.validation
        passes = rounds * (self._passes(texts.source) + self._passes(texts.retain, models=2))
        tokens = rounds * (texts.source.total + 2 * texts.retain.total)
        return self._whole_model(
            "validation", forward_flops(self._counts.active_total, tokens), passes
        )

    def _evaluation(self) -> Phase | None:
        """Generation and comparison by the base model and by the edited one."""
        texts = self._work.texts
        if not texts.generated.count:
            return None
        flops, passes, read = self._generation(texts.generated)
        flops += forward_flops(self._counts.active_total, texts.compared.total)
        passes = 2 * passes + self._passes(texts.compared, models=2)
        return self._whole_model("evaluation", 2 * flops, passes, 2 * read)


def _streaming_finding(streaming: Streaming, phases: Sequence[Phase], depth: int) -> Finding:
    """What is streamed, how long it takes, and in which phases most of it."""
    total, speed = streaming.total_bytes, streaming.bytes_per_second
    from_host = streaming.source == "cpu"
    source = "host memory" if from_host else "the checkpoint's files"
    message = (
        f"{len(streaming.resident)} of {depth} layers stay on the device; the others, "
        f"{size_text(streaming.layer_bytes)}, are streamed from {source} whenever the whole model "
        f"runs: {size_text(total)} in total, about {time_text(total / speed)} at "
        f"{size_text(int(speed))}/s ({'measured' if from_host else 'an assumption'})."
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
