"""Check an edit before its weights are loaded, and estimate its memory, time and disk space.

Estimates are operations over measured speeds, and bytes from shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError

from retouch.concepts.concept import Concept
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config import EditConfig, EvaluationConfig
from retouch.core.errors import RetouchError
from retouch.core.finding import LEVELS, Finding
from retouch.core.serialization import to_plain
from retouch.models.load import check_load_config, find_device, find_dtype
from retouch.models.memory_estimate import ParameterCounts, count_parameters, lora_parameters
from retouch.models.weights import bitsandbytes_config
from retouch.preflight.estimate import Estimate, check_download, estimate_edit
from retouch.preflight.hardware import Hardware, measure_hardware
from retouch.preflight.skeleton import ModelSkeleton, load_skeleton
from retouch.preflight.workload import (
    SplitLengths,
    TokenLengths,
    Workload,
    measure_evaluation,
    measure_split,
)
from retouch.reporting.safety_gate import check_weakening
from retouch.task.examples import SampledExamples, example_rng, sample_examples
from retouch.task.layers import LayerSelection, select_layers

Result = TypeVar("Result")
Sampled = tuple[SampledExamples, SampledExamples]
"""The examples of the training and of the validation split."""


@dataclass(frozen=True)
class PreflightReport:
    """What is known of an edit before its weights are loaded.

    Attributes:
        config: the edit.
        findings: errors first, then warnings, then information.
        architecture: the name of the model's class; empty if it is unknown.
        num_parameters: of the model.
        num_layers: of the model.
        dtype: of the loaded weights.
        layers: the layers of the edit, as far as they are known beforehand.
        trainable_parameters: of the adapter.
        hardware: the measured device; None if it is not available.
        estimate: memory, time and disk space; None if something that they depend on is unknown.
    """

    config: EditConfig
    findings: tuple[Finding, ...]
    architecture: str = ""
    num_parameters: int = 0
    num_layers: int = 0
    dtype: str = ""
    layers: LayerSelection | None = None
    trainable_parameters: int = 0
    hardware: Hardware | None = None
    estimate: Estimate | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that prevent the edit."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON values, with `runs`, `estimate.seconds` and `estimate.memory.peak`."""
        plain: dict[str, Any] = {"runs": not self.errors, **to_plain(self)}
        if self.estimate is not None:
            plain["estimate"]["seconds"] = self.estimate.seconds
            plain["estimate"]["memory"]["peak"] = self.estimate.memory.peak
        return plain


def run_preflight(config: EditConfig, *, output_dir: Path = Path("runs")) -> PreflightReport:
    """Check everything that an edit needs; no weights are loaded.

    Args:
        config: the edit.
        output_dir: where the run directory would be.

    Raises:
        DataError: the concept cannot be read.
    """
    concept = load_concept(config.concept)
    findings: list[Finding] = []
    weakening = (config.direction, config.allow_weakening, concept)
    _attempt(findings, lambda: check_weakening(*weakening))
    findings += _check_options(config)
    load = config.load
    device = _attempt(findings, lambda: find_device(load.device))
    dtype = find_dtype(load.dtype, device or torch.device("cpu"))
    hardware = None
    if device is not None:
        hardware = _attempt(findings, lambda: measure_hardware(device, dtype))
    if load.quantize != "none":
        _attempt(findings, lambda: bitsandbytes_config(load.quantize, dtype))
    skeleton = load_skeleton(config.model, load, dtype)
    findings += skeleton.findings
    sampled = _attempt(findings, lambda: _sample(config, concept))
    if sampled is not None:
        findings.append(_examples_finding(concept, sampled[0]))
    report = PreflightReport(config, (), dtype=str(dtype).removeprefix("torch."), hardware=hardware)
    report = _describe(report, skeleton, concept, sampled, findings, output_dir)
    ordered = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
    return replace(report, findings=tuple(ordered))


def _attempt(findings: list[Finding], check: Callable[[], Result]) -> Result | None:
    """The result of a check; an error of it becomes a finding."""
    try:
        return check()
    except RetouchError as error:
        findings.append(Finding("error", error.code, error.message, error.hint))
        return None


def _check_options(config: EditConfig) -> list[Finding]:
    """Check the options alone."""
    findings: list[Finding] = []
    _attempt(findings, lambda: check_load_config(config.load))
    if config.load.fsdp:
        message = "Sharding is not estimated: memory and time are those of one process."
        findings.append(Finding("warning", "fsdp-not-estimated", message))
    if config.adversary.finetune_steps:
        message = "Memory and time of the fine-tuning adversary are not estimated."
        findings.append(Finding("warning", "adversary-not-estimated", message))
    return findings


def _sample(config: EditConfig, concept: Concept) -> Sampled:
    train, validation = (
        sample_examples(
            example_rng(config.seed, split),
            concept,
            config.direction,
            split,
            config.data,
            config.seed,
        )
        for split in ("train", "validation")
    )
    return train, validation


def _examples_finding(concept: Concept, train: SampledExamples) -> Finding:
    pairs = "in pairs" if train.paired else "without pairs"
    message = (
        f"{concept.name}: {len(train.source)} source, {len(train.target)} target ({pairs}) and "
        f"{len(train.retain)} retain examples."
    )
    return Finding("ok", "examples", message)


def _describe(
    report: PreflightReport,
    skeleton: ModelSkeleton,
    concept: Concept,
    sampled: Sampled | None,
    findings: list[Finding],
    output_dir: Path,
) -> PreflightReport:
    """Add the model, the layers and the estimate, as far as they are known."""
    config, model, layout = report.config, skeleton.model, skeleton.layout
    if model is None or layout is None:
        return report
    counts = count_parameters(model, layout)
    report = replace(
        report,
        architecture=type(model).__name__,
        num_parameters=counts.total,
        num_layers=layout.depth,
    )
    paired = sampled is not None and sampled[0].paired
    layers = _attempt(findings, lambda: _select_layers(config, layout.depth, paired))
    if layers is None:
        return report
    report = replace(report, layers=layers)
    targets = config.lora.target_modules
    names = _attempt(findings, lambda: layout.linears(model, layers.adapted, targets))
    if names is None:
        return report
    findings += _check_unadapted(skeleton, counts, layers)
    trainable = lora_parameters(model, names, config.lora.r)
    report = replace(report, trainable_parameters=trainable)
    if sampled is None or skeleton.tokenizer is None:
        return report
    lengths = _measure_lengths(skeleton, concept, config, sampled, findings)
    if lengths is None:
        return report
    if not skeleton.local and skeleton.files.size:
        findings.append(check_download(skeleton.files.size))
    work = Workload(
        load=config.load,
        method=config.method,
        max_new_tokens=config.data.max_new_tokens,
        model=model,
        layout=layout,
        counts=counts,
        itemsize=model.dtype.itemsize,
        checkpoint_bytes=skeleton.files.size if skeleton.quantization else 0,
        hardware=report.hardware,
        layers=layers,
        adapted=tuple(names),
        paired=paired,
        train=lengths.train,
        validation=lengths.validation,
        generated=lengths.generated,
        compared=lengths.compared,
    )
    estimate, problems = estimate_edit(work, output_dir)
    findings += problems
    return replace(report, estimate=estimate)


def _select_layers(config: EditConfig, depth: int, paired: bool) -> LayerSelection:
    """The layers of the edit; the middle of the model where causal patching would find them."""
    read = config.discriminator.layers
    layers = select_layers(
        None,
        depth,
        adapted=config.lora.layers_to_transform,
        read=read,
        sft=config.loss.sft_weight > 0,
    )
    if not paired or read is not None:
        return layers
    reason = "found by causal patching after loading; estimated for the middle of the model"
    return replace(layers, reason=reason)


def _check_unadapted(
    skeleton: ModelSkeleton, counts: ParameterCounts, layers: LayerSelection
) -> list[Finding]:
    """Count the weights of the adapted layers that LoRA cannot adapt."""
    assert skeleton.layout is not None
    weights = skeleton.layout.unadapted(skeleton.model, layers.adapted)
    if not weights:
        return []
    count, total = sum(weights.values()), sum(counts.blocks[i] for i in layers.adapted)
    start = len(skeleton.layout.path) + 1
    names = sorted({name[start:].partition(".")[2].removesuffix(".weight") for name in weights})
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    message = (
        f"{count:,} of the {total:,} parameters of the adapted layers ({count / total:.0%}) cannot "
        f"be adapted: {listed}."
    )
    return [Finding("warning", "weights-unadapted", message)]


@dataclass(frozen=True)
class _Lengths:
    """Lengths of all texts of an edit and of its evaluation."""

    train: SplitLengths
    validation: SplitLengths
    generated: TokenLengths
    compared: TokenLengths


def _measure_lengths(
    skeleton: ModelSkeleton,
    concept: Concept,
    config: EditConfig,
    sampled: Sampled,
    findings: list[Finding],
) -> _Lengths | None:
    """The lengths of all texts; None if the chat template rejects one."""
    tokenizer, limit = skeleton.tokenizer, config.data.max_new_tokens
    concepts = _evaluated(concept, config.evaluation)
    try:
        train, validation = (measure_split(tokenizer, one, config.data) for one in sampled)
        generated, compared = measure_evaluation(
            tokenizer, concepts, config.evaluation.limit or None, limit
        )
    except RetouchError as error:
        findings.append(Finding("error", error.code, error.message, error.hint))
        return None
    except (TemplateError, ValueError) as error:
        message = f"The chat template rejects the concept's chats: {error}."
        hint = "Remove what it rejects, such as system turns, or set another `chat_template`."
        findings.append(Finding("error", "chat-template-rejects", message, hint))
        return None
    longest = max(train.all.longest, validation.all.longest, generated.longest)
    maximum = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    if maximum and longest > maximum:
        message = f"The longest text has {longest} tokens, the model supports {maximum}."
        hint = "Shorten the examples, or set a lower `max_new_tokens`."
        findings.append(Finding("warning", "text-too-long", message, hint))
    return _Lengths(train, validation, generated, compared)


def _evaluated(concept: Concept, evaluation: EvaluationConfig) -> list[Concept]:
    """The concepts that are evaluated after the edit."""
    if evaluation.suites == "none":
        return []
    others = [name for name in builtin_names() if name != concept.name]
    return [concept, *map(load_concept, others if evaluation.suites == "all" else ())]
