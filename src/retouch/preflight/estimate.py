"""Estimate the resources of an edit: memory, duration by phase, streamed bytes, disk space."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch.core.finding import ErrorsAsFindings, Finding
from retouch.core.units import size_text, time_text
from retouch.models.generate import BATCH_SIZE
from retouch.models.memory_estimate import (
    FLOAT32_BYTES,
    forward_flops,
    generation_bytes,
    max_generation_rows,
    training_flops,
)
from retouch.models.offload import OffloadPlan
from retouch.preflight.findings import check_disk
from retouch.preflight.hardware import Hardware
from retouch.preflight.memory import (
    MemoryPlan,
    Suggestion,
    check_memory,
    plan_memory,
    validation_rows,
)
from retouch.preflight.workload import TokenLengths, Workload
from retouch.task.task import TRACED_PAIRS

# Assumptions: the share of a large matrix product's speed that an edit's small ones reach, and the
# seconds in which the operations of one block are launched. Fitted on edits of pocket.
UTILISATION = 0.3
LAUNCH_SECONDS = {"cpu": 5e-4, "cuda": 3e-4}
DISK_SPEED = 1e9  # bytes per second: an assumption, of an NVMe drive without its cache


@dataclass(frozen=True)
class Phase:
    """A phase of an edit, with its estimated duration and the weights streamed to the device."""

    name: str
    seconds: float
    streamed_bytes: int


@dataclass(frozen=True)
class Streaming:
    """Layers that are streamed to the device whenever they run."""

    source: str  # `cpu` (host memory) or `disk`
    resident: tuple[int, ...]  # the layers that stay on the device, 0-based
    layer_bytes: int  # of the streamed layers
    total_bytes: int  # streamed in the whole edit
    bytes_per_second: float  # measured from host memory, an assumption from disk


@dataclass(frozen=True)
class Estimate:
    """The estimated resources of an edit."""

    memory: MemoryPlan
    available: int | None  # bytes of the device that the edit may use; None without a device
    disk: int  # bytes of the run directory
    phases: tuple[Phase, ...] = ()  # empty without a device
    streaming: Streaming | None = None  # None if the whole model stays on the device
    suggestions: tuple[Suggestion, ...] = ()  # settings with which the edit fits, if it does not

    @property
    def seconds(self) -> float | None:
        """Duration of the edit and its evaluation; None without a device."""
        return sum(phase.seconds for phase in self.phases) if self.phases else None


def estimate_edit(work: Workload, output_dir: Path) -> tuple[Estimate, list[Finding]]:
    """Estimate an edit whose run directory would be `output_dir`."""
    findings: list[Finding] = []
    suggestions: tuple[Suggestion, ...] = ()
    offload, hardware = None, work.hardware
    with ErrorsAsFindings(findings):
        offload = work.plan_offload()
    if findings:
        work = work.with_settings({"max_device_memory": None})
    memory, disk = plan_memory(work, offload), _run_bytes(work)
    if hardware is not None and not findings:
        found, suggestions = check_memory(work, memory)
        findings += found
    hint = "Free disk space, or set another `output_dir`."
    findings += check_disk(output_dir, disk, "are needed for the run in", hint)
    if hardware is None:
        return Estimate(memory, None, disk), findings
    if memory.disk_states and not any(finding.level == "error" for finding in findings):
        message = "of cached activations are read at every step from"
        hint = "Set TMPDIR to a larger disk, raise `activation_cache` or lower `num_retain`."
        folder = Path(tempfile.gettempdir())
        findings += check_disk(folder, memory.disk_states, message, hint, "states-on-disk")
    if work.load.quantize != "none" and not work.checkpoint_bytes:
        findings.append(_quantisation_finding(work))
    phases = _phases(work, offload, hardware)
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
    return Estimate(memory, work.available, disk, phases, streaming, suggestions), findings


def _run_bytes(work: Workload) -> int:
    """Bytes of a run directory: two checkpoints, adapter, discriminators and generations.

    A checkpoint has the adapter five times: weights, average, best, Adam's two moments.
    """
    adapter, hidden = work.adapter_parameters, max(work.method.discriminator.hidden_size, 1)
    discriminators = 3 * len(work.layers.read) * (work.hidden_size + 2) * hidden
    tokens = work.generated.total + work.train.source.total
    texts = 2 * 4 * tokens + 2**20  # 4 bytes a token, of two models
    return FLOAT32_BYTES * (11 * adapter + 3 * discriminators) + texts


def _streaming_speed(offload: OffloadPlan | None, hardware: Hardware) -> float:
    from_host = offload is not None and offload.source == "cpu"
    return hardware.upload_bytes_per_second if from_host else DISK_SPEED


def _phases(work: Workload, offload: OffloadPlan | None, hardware: Hardware) -> tuple[Phase, ...]:
    """The phases of an edit and of its evaluation, in order."""
    counts, depth, segment, method = work.counts, work.layout.depth, work.segment, work.method
    train, validation, generated = work.train, work.validation, work.generated
    free = None if offload is None else offload.free_bytes
    layer_bytes = (0,) * depth if offload is None else offload.streamed_bytes
    streamed = sum(layer_bytes)
    # No layer is resident before the training.
    streamed_before = work.itemsize * sum(counts.blocks) if streamed else 0
    block_seconds = LAUNCH_SECONDS["cpu" if hardware.is_cpu else "cuda"]
    block_seconds += work.itemsize * sum(counts.blocks) / depth / hardware.bytes_per_second

    def phase(name: str, flops: float, passes: int, blocks: int, streamed: int = 0) -> Phase:
        """Its operations, and passes that launch and read blocks and stream bytes of weights."""
        seconds = flops / (UTILISATION * hardware.flops_per_second)
        seconds += passes * blocks * block_seconds
        seconds += passes * streamed / _streaming_speed(offload, hardware)
        return Phase(name, seconds, passes * streamed)

    def whole(name: str, tokens: int, passes: int, streamed: int = streamed) -> Phase:
        return phase(name, forward_flops(counts.active_total, tokens), passes, depth, streamed)

    def generate(
        texts: TokenLengths, longest: int
    ) -> int:  # a pass for each token of a batch's responses
        row = generation_bytes(work.model, work.layout, texts.longest, work.itemsize)
        batches = texts.batches(max_generation_rows(free, BATCH_SIZE, row))
        return batches * min(longest, max(texts.responses, default=0))

    def validate(texts: TokenLengths) -> int:
        return texts.batches(validation_rows(work, texts, free))

    base = train.all + validation.all
    phases = [
        whole("base responses", base.total, generate(base, work.max_new_tokens), streamed_before)
    ]
    if work.paired and None in (method.discriminator.layers, method.lora.layers_to_transform):
        pairs, passes = train.source, depth + 2
        tokens = passes * pairs.total * min(TRACED_PAIRS, pairs.count) // pairs.count
        phases.append(whole("causal patching", tokens, passes, streamed_before))
    cached = train.all + train.target if work.paired else train.all
    flops = forward_flops(sum(counts.active[: segment.stop]), cached.packed)
    passes, below = cached.batches(work.micro_batch_size), sum(layer_bytes[: segment.start])
    phases.append(phase("activation cache", flops, passes, segment.stop, below))
    phases.append(phase("training", *_training(work)))
    # After every round and at every strength; the base model's side is computed once.
    validations = method.train.rounds + len(method.train.strengths)
    both = validation.source + validation.retain
    flops, passes = forward_flops(counts.active_total, both.packed), validate(both)
    if method.loss.uses_logits:  # from the cached inputs of the segment
        phases.append(whole("validation cache", both.packed, passes))
        active = sum(counts.active[i] for i in segment)
        flops = forward_flops(active, both.packed)
        flops += forward_flops(counts.head, sum(both.responses))
        validation_phase = phase(
            "validation", validations * flops, validations * passes, len(segment)
        )
    else:
        passes = validations * passes + validate(validation.retain)
        validation_phase = phase("validation", validations * flops, passes, depth, streamed)
    phases.append(validation_phase)
    if generated.count:  # by the base model and by the edited one
        passes = 2 * generate(generated, work.evaluation_max_new_tokens)
        phases.append(whole("evaluation", 2 * generated.total, passes))
    return tuple(phases)


def _training(work: Workload) -> tuple[float, int, int]:
    """Operations and passes of the training, and the blocks that one pass launches.

    A generator step takes a source and a retain batch through the segment and back, and the source
    batch once more for each gradient step of the latent attack, and where the source's own
    responses are unlearned. With a loss of the logits, those of the responses are computed too. The
    discriminators are trained on states that are recorded before the first round and after every
    one.
    """
    counts, segment, method = work.counts, work.segment, work.method
    train, adversary, fit = method.train, method.adversary, method.discriminator
    trainable = work.adapter_parameters
    source, retain = work.train.source, work.train.retain
    shares = (
        (source, min(train.batch_size / max(source.count, 1), 1.0)),
        (retain, min(train.retain_batch_size / max(retain.count, 1), 1.0)),
    )
    source_tokens, retain_tokens = (round(share * one.packed) for one, share in shares)
    sources = 1 + (adversary.latent_steps if adversary.latent_epsilon > 0 else 0)
    loss = method.loss
    unlearns = loss.npo_weight > 0  # responses that are about as long as those to learn
    sources += unlearns
    active = sum(counts.active[i] for i in segment)
    step = training_flops(active, trainable, sources * source_tokens + retain_tokens)
    learned, kept = (round(share * sum(one.responses)) for one, share in shares)
    learned *= (max(loss.sft_weight, loss.distillation_weight) > 0) + unlearns
    logits = learned + kept * (loss.kl_weight > 0)
    step += training_flops(counts.head, 0, logits)
    steps = train.rounds * train.steps_per_round
    fits = fit.warmup_steps + (train.rounds - 1) * fit.steps_per_round
    if fit.reset_each_round:
        fits = train.rounds * fit.warmup_steps
    responses = source.responses + work.train.target.responses
    states = len(work.layers.read) * sum(min(one, fit.positions) for one in responses)
    discriminator = work.hidden_size * max(fit.hidden_size, 1)
    flops = steps * step + training_flops(0, discriminator, states * fits)
    flops += (train.rounds + 1) * forward_flops(active, source.packed)
    passes = steps * -(-train.batch_size // work.micro_batch_size)
    blocks = (sources + (retain.count > 0)) * len(segment)
    return flops, passes, 3 * blocks  # a pass with gradients counts as three


def _streaming_finding(streaming: Streaming, phases: Sequence[Phase], depth: int) -> Finding:
    """What is streamed, how long it takes, and in which phase most of it."""
    total, speed = streaming.total_bytes, streaming.bytes_per_second
    from_host = streaming.source == "cpu"
    source = "host memory" if from_host else "the checkpoint's files"
    message = (
        f"{len(streaming.resident)} of {depth} layers stay on the device; the others, "
        f"{size_text(streaming.layer_bytes)}, are streamed from {source} whenever the whole model "
        f"runs: {size_text(total)} in total, about {time_text(total / speed)} at "
        f"{size_text(int(speed))}/s ({'measured' if from_host else 'an assumption'})."
    )
    most = max(phases, key=lambda phase: phase.streamed_bytes)
    hint = (
        f"Most of it in {most.name}, {most.streamed_bytes / total:.0%}. To stream less, set lower "
        "`num_examples`, `num_retain` or `rounds`, or `suites` concept or none."
    )
    return Finding("warning", "layers-streamed", message, hint)


def _quantisation_finding(work: Workload) -> Finding:
    message = (
        f"With `quantize` {work.load.quantize} the weights take {size_text(work.weight_bytes)} "
        f"instead of {size_text(work.counts.total * work.itemsize)}; dequantising is not timed."
    )
    hint = "To merge the adapter, load the base model unquantised."
    return Finding("warning", "weights-quantized", message, hint)
