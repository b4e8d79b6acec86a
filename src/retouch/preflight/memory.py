"""Plan the memory of an edit from shapes, and find settings with which it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from retouch.core.errors import ModelError
from retouch.core.finding import Finding
from retouch.core.units import size_text
from retouch.models.activation_cache import DEFAULT_SHARE
from retouch.models.generate import BATCH_SIZE
from retouch.models.memory_estimate import (
    FLOAT32_BYTES,
    TRAINED_BYTES,
    activation_bytes,
    generation_bytes,
    max_generation_rows,
)
from retouch.models.offload import OffloadPlan
from retouch.preflight.workload import TokenLengths, Workload
from retouch.representations.logprobs import logit_tokens

COMFORTABLE = 0.85  # share of the available memory up to which an estimate is trusted to fit
HALF_BYTES = 2  # of a cached log-probability
VALIDATION_ROWS = 32  # maximum rows of a validation batch


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of an edit, by part."""

    weights: int  # of the model, on the device
    generation: int  # keys, values, states and logits while the base model responds
    cached_states: int  # on the device
    adapter: int  # weights, gradients, Adam's moments and averages
    activations: int  # what autograd saves in one step
    logits: int  # of one validation batch
    host_states: int = 0  # cached states in host memory beside the device
    disk_states: int = 0  # cached states in a memory-mapped file
    streams: bool = False  # whether layers are streamed to the device

    @property
    def training(self) -> int:
        """The peak of the training beside the weights."""
        return self.cached_states + self.adapter + max(self.activations, self.logits)

    @property
    def beside_weights(self) -> int:
        """The peak of everything but the weights."""
        return max(self.generation, self.training)

    @property
    def peak(self) -> int:
        """Maximum bytes on the device at one time."""
        return self.weights + self.beside_weights


@dataclass(frozen=True)
class Suggestion:
    """Settings with which an edit fits."""

    settings: dict[str, dict[str, Any]]  # by group, as in a configuration file
    peak: int  # bytes on the device with them
    streams: bool  # whether layers are streamed then

    def __str__(self) -> str:
        values = {key: value for group in self.settings.values() for key, value in group.items()}
        named = " and ".join(f"`{key}` {value}" for key, value in values.items())
        streamed = ", layers streamed" if self.streams else ""
        return f"{named} ({size_text(self.peak)}{streamed})"


def plan_memory(work: Workload, offload: OffloadPlan | None) -> MemoryPlan:
    """The memory of an edit whose weights are placed by `offload`, or wholly on the device.

    Without hardware all cached states are counted on the device.
    """
    free = None if offload is None else offload.free_bytes
    weights = work.weight_bytes if offload is None else offload.weights
    texts = work.train.all + work.generated
    row = generation_bytes(work.model, work.layout, texts.longest, work.itemsize)
    validated = work.validation.source + work.validation.retain
    two_models = 2 * validation_rows(work, validated, free) * validated.longest
    logits = min(two_models, logit_tokens(free, work.vocabulary)) * work.vocabulary
    device, host, disk = _cached_states(work, weights, free)
    return MemoryPlan(
        weights=weights,
        generation=row * min(max_generation_rows(free, BATCH_SIZE, row), texts.count),
        cached_states=device,
        adapter=TRAINED_BYTES * work.adapter_parameters,
        activations=_activations(work),
        logits=logits * work.itemsize,
        host_states=host,
        disk_states=disk,
        streams=offload is not None and not offload.whole,
    )


def validation_rows(
    work: Workload, texts: TokenLengths, free_bytes: int | None, models: int = 1
) -> int:
    """Rows of a validation batch, of which `models` models have logits at the same time."""
    tokens = logit_tokens(free_bytes, work.vocabulary) // models
    return max(1, min(VALIDATION_ROWS, tokens // max(texts.longest, 1)))


def _cached_states(work: Workload, weights: int, free_bytes: int | None) -> tuple[int, int, int]:
    """Bytes of cached states on the device, in host memory and on disk.

    As `training.dataset` and `models.activation_cache` place them: segment inputs of source and
    retain examples, reference states of the retain set and of the target counterparts, and the base
    model's log-probabilities that a divergence is computed from.
    """
    train, hardware, loss = work.train, work.hardware, work.method.loss
    sources = 2 if loss.npo_weight else 1  # with the responses to unlearn
    positions = sources * train.source.total + 2 * train.retain.total
    if work.paired:
        positions += len(work.layers.read) * sum(train.source.responses)
    distilled = sum(train.source.responses) if work.paired and loss.distillation_weight else 0
    kept = sum(train.retain.responses) if loss.kl_weight else 0
    size = positions * work.hidden_size * work.itemsize
    size += (distilled + kept) * work.vocabulary * HALF_BYTES
    if hardware is None:
        return size, 0, 0
    limit = work.method.train.activation_cache_bytes
    if limit is None and free_bytes is not None:
        limit = free_bytes // 2
    left = max(hardware.free_bytes - weights, 0)
    device = min(size, limit or int(DEFAULT_SHARE * left))
    host_limit = 0 if hardware.is_cpu else limit or int(DEFAULT_SHARE * hardware.host_free_bytes)
    host = min(size - device, host_limit)
    return device, host, size - device - host


def _activations(work: Workload) -> int:
    """What autograd saves for a micro-batch of the longest texts."""
    texts = work.train.source + work.train.retain
    rows, tokens = min(work.micro_batch_size, texts.count), texts.longest
    saved = activation_bytes(
        work.model,
        work.layout,
        range(min(work.layers.adapted), work.segment.stop),
        adapted=set(work.adapted),
        rows=rows,
        tokens=tokens,
        itemsize=work.itemsize,
    )
    if work.method.loss.uses_logits:
        # At the responses alone: the logits, their log-probabilities and the gradient.
        positions = rows * max(texts.responses, default=0)
        saved += positions * work.vocabulary * (work.itemsize + 2 * FLOAT32_BYTES)
    return saved


def check_memory(work: Workload, plan: MemoryPlan) -> tuple[list[Finding], tuple[Suggestion, ...]]:
    """Compare a plan with the free memory; the findings, and settings with which the edit fits."""
    suggestions: tuple[Suggestion, ...] = ()
    hardware, available = work.hardware, work.available
    assert hardware is not None
    message = f"Needs {size_text(plan.peak)}, {size_text(available)} available."
    if plan.peak <= COMFORTABLE * available:
        finding = Finding("ok", "memory-fits", message)
    elif plan.peak <= available:
        finding = Finding("warning", "memory-tight", message, "Free memory before the edit.")
    elif rows := _rows_after_oom(work, hardware.is_cpu):
        message += " The micro-batch size is reduced automatically when memory runs out."
        hint = f"Set `micro_batch_size` {rows}, which is estimated to fit."
        finding = Finding("warning", "micro-batch-reduced", message, hint)
    else:
        hint = "Lower `micro_batch_size`, `num_examples` or `num_retain`, or adapt fewer layers"
        if plan.weights > available:
            message += f" The weights alone take {size_text(plan.weights)}."
            hint = "Use a device with more memory or a smaller model"
        elif plan.beside_weights == plan.generation:  # whose batch size is not an option
            hint = "Lower `num_examples`, `num_retain` or `max_new_tokens`"
        if suggestions := _suggest(work):
            hint += f"; or set {', or '.join(map(str, suggestions))}"
        finding = Finding("error", "memory-exceeded", message, f"{hint}.")
    findings = [finding]
    # On a GPU, unquantised weights that stay there are loaded through host memory.
    direct = hardware.is_cpu or plan.streams or work.load.quantize != "none"
    if not direct and plan.weights > hardware.host_free_bytes:
        dtype = " and `dtype` bfloat16" if work.itemsize == FLOAT32_BYTES else ""
        message = (
            f"Loading through host memory needs {size_text(plan.weights)}, "
            f"{size_text(hardware.host_free_bytes)} available."
        )
        hint = f"Set a lower `max_device_memory`{dtype}."
        findings.append(Finding("error", "host-memory-exceeded", message, hint))
    return findings, suggestions


def _rows_after_oom(work: Workload, is_cpu: bool) -> int | None:
    """The micro-batch size that training halves itself down to on a GPU; None if none fits."""
    # On a CPU, exhausted memory is not an error that can be handled.
    plans = () if is_cpu else _plans(work, {})
    # Generation is left out, since its batches are halved down to one row too.
    fitting = (rows for rows, one in plans if one.weights + one.training <= work.available)
    return next(fitting, None)


def _suggest(work: Workload) -> tuple[Suggestion, ...]:
    """Settings with which an edit fits the device, those that change least first."""
    limited = work.load.max_device_memory is not None
    # Of each list, the first load options that fit.
    candidates: list[list[dict[str, Any]]] = []
    if limited or work.weight_bytes <= work.available:
        candidates.append([{}])
    if not limited and work.itemsize == FLOAT32_BYTES:
        candidates.append([{"dtype": "bfloat16"}])
    if not limited and not work.load.fsdp and work.load.quantize == "none":
        if not work.checkpoint_bytes:
            candidates.append([{"quantize": "8bit"}, {"quantize": "4bit"}])
        candidates.append([{"max_device_memory": _round_size(work.available)}])
    found: list[Suggestion] = []
    for loads in candidates:
        plans = ((load, rows, plan) for load in loads for rows, plan in _plans(work, load))
        for load, rows, plan in islice((p for p in plans if p[2].peak <= work.available), 1):
            train = {"micro_batch_size": rows} if rows < work.micro_batch_size else {}
            settings = {k: v for k, v in (("load", load), ("train", train)) if v}
            if settings:
                found.append(Suggestion(settings, plan.peak, plan.streams))
    return tuple(found)


def _plans(work: Workload, load: Mapping[str, Any]) -> Iterator[tuple[int, MemoryPlan]]:
    """The plans with other load options, for the micro-batch size, half of it, and so on to 1."""
    rows = 2 * work.micro_batch_size
    while rows > 1:
        rows = min((rows + 1) // 2, work.micro_batch_size)
        changed = work.with_settings(load, rows)
        try:
            yield rows, plan_memory(changed, changed.plan_offload())
        except ModelError:  # the limit is too low for any micro-batch size
            return


def _round_size(size: int) -> str:
    """A size as `max_device_memory` accepts it, rounded down."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= 4 * unit:
            return f"{size // unit}{name}"
    return str(max(size, 1))
