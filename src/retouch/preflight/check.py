"""Check an edit before its weights are loaded, and estimate its memory, time and disk space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from retouch.concepts.concept import Concept
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.core.finding import LEVELS, Finding
from retouch.core.serialization import to_plain
from retouch.models.load import check_load_config, find_device, find_dtype
from retouch.models.memory_estimate import count_parameters, lora_parameters
from retouch.models.weights import bitsandbytes_config
from retouch.preflight.estimate import Estimate, estimate_edit
from retouch.preflight.findings import check_disk, collect_errors
from retouch.preflight.hardware import Hardware, measure_hardware
from retouch.preflight.skeleton import ModelSkeleton, load_skeleton
from retouch.preflight.workload import TextLengths, Workload, measure_evaluation, measure_split
from retouch.reporting.safety_gate import check_weakening
from retouch.task.examples import SampledExamples, example_rng, sample_examples
from retouch.task.layers import LayerSelection, select_layers

Sampled = tuple[SampledExamples, SampledExamples]
"""The examples of the training and of the validation split."""


@dataclass
class PreflightReport:
    """What is known of an edit before its weights are loaded."""

    config: EditConfig
    findings: list[Finding] = field(default_factory=list)  # errors first, then warnings
    architecture: str = ""  # the name of the model's class; empty if it is unknown
    num_parameters: int = 0
    num_layers: int = 0
    dtype: str = ""  # of the loaded weights
    layers: LayerSelection | None = None  # as far as they are known beforehand
    trainable_parameters: int = 0
    hardware: Hardware | None = None  # None if the device is not available
    estimate: Estimate | None = None  # None if something that it depends on is unknown

    @property
    def errors(self) -> list[Finding]:
        """The findings that prevent the edit."""
        return [finding for finding in self.findings if finding.level == "error"]

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
    concept, load = load_concept(config.concept), config.load
    report = PreflightReport(config, _not_estimated(config))
    findings = report.findings
    with collect_errors(findings):
        check_weakening(config.direction, config.allow_weakening, concept)
    with collect_errors(findings):
        check_load_config(load)
    dtype = find_dtype(load.dtype, torch.device("cpu"))
    with collect_errors(findings):
        device = find_device(load.device)
        dtype = find_dtype(load.dtype, device)
        report.hardware = measure_hardware(device, dtype)
    report.dtype = str(dtype).removeprefix("torch.")
    with collect_errors(findings):
        if load.quantize != "none":
            bitsandbytes_config(load.quantize, dtype)
    skeleton = load_skeleton(config.model, load, dtype)
    findings += skeleton.findings
    if not skeleton.local and skeleton.files.size:
        findings += _check_download(skeleton.files.size)
    sampled: Sampled | None = None
    with collect_errors(findings):
        sampled = _sample(config, concept)
        findings.append(_examples_finding(concept, sampled[0]))
    adapted: tuple[str, ...] = ()
    with collect_errors(findings):
        adapted = _describe_model(report, skeleton, sampled is not None and sampled[0].paired)
    if adapted and sampled is not None and skeleton.tokenizer is not None:
        with collect_errors(findings):
            texts = _measure_texts(report, skeleton, concept, sampled)
            work = _workload(report, skeleton, adapted, texts, sampled[0].paired)
            report.estimate, found = estimate_edit(work, output_dir)
            findings += found
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return report


def _not_estimated(config: EditConfig) -> list[Finding]:
    findings = []
    if config.load.fsdp:
        message = "Sharding is not estimated: memory and time are those of one process."
        findings.append(Finding("warning", "fsdp-not-estimated", message))
    if config.adversary.finetune_steps:
        message = "Memory and time of the fine-tuning adversary are not estimated."
        findings.append(Finding("warning", "adversary-not-estimated", message))
    return findings


def _check_download(size: int) -> list[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    hint = "Free disk space, or set HF_HOME to a folder on a larger disk."
    message = "of weights would be downloaded to"
    return check_disk(Path(HF_HUB_CACHE), size, message, hint, "weights-download")


def _sample(config: EditConfig, concept: Concept) -> Sampled:
    seed, direction = config.seed, config.direction
    train, validation = (
        sample_examples(example_rng(seed, split), concept, direction, split, config.data, seed)
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


def _describe_model(
    report: PreflightReport, skeleton: ModelSkeleton, paired: bool
) -> tuple[str, ...]:
    """Report the model and the layers; the names of the adapted linear layers, if known."""
    config, model, layout = report.config, skeleton.model, skeleton.layout
    if layout is None:
        return ()
    report.architecture = type(model).__name__
    report.num_parameters = count_parameters(model, layout).total
    report.num_layers = layout.depth
    adapted, read = config.lora.layers_to_transform, config.discriminator.layers
    sft = config.loss.sft_weight > 0
    layers = select_layers(None, layout.depth, adapted=adapted, read=read, sft=sft)
    if paired and read is None:
        reason = "found by causal patching after loading; estimated for the middle of the model"
        layers = replace(layers, reason=reason)
    report.layers = layers
    names = layout.linears(model, layers.adapted, config.lora.target_modules)
    report.trainable_parameters = lora_parameters(model, names, config.lora.r)
    report.findings += _check_unadapted(skeleton, layers)
    return tuple(names)


def _check_unadapted(skeleton: ModelSkeleton, layers: LayerSelection) -> list[Finding]:
    """Count the weights of the adapted layers that LoRA cannot adapt."""
    layout = skeleton.layout
    assert layout is not None
    weights = layout.unadapted(skeleton.model, layers.adapted)
    if not weights:
        return []
    inside = count_parameters(skeleton.model, layout).blocks
    count, total = sum(weights.values()), sum(inside[i] for i in layers.adapted)
    start = len(layout.path) + 1
    names = sorted({name[start:].partition(".")[2].removesuffix(".weight") for name in weights})
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    message = (
        f"{count:,} of the {total:,} parameters of the adapted layers ({count / total:.0%}) cannot "
        f"be adapted: {listed}."
    )
    return [Finding("warning", "weights-unadapted", message)]


def _measure_texts(
    report: PreflightReport, skeleton: ModelSkeleton, concept: Concept, sampled: Sampled
) -> TextLengths:
    """The lengths of all texts.

    Raises:
        ModelError: the chat template rejects a text.
    """
    tokenizer, evaluation, data = skeleton.tokenizer, report.config.evaluation, report.config.data
    concepts = [] if evaluation.suites == "none" else [concept]
    if evaluation.suites == "all":
        concepts += [load_concept(name) for name in builtin_names() if name != concept.name]
    limit = evaluation.limit or None
    try:
        train, validation = (measure_split(tokenizer, one, data) for one in sampled)
        generated = measure_evaluation(tokenizer, concepts, limit, data.max_new_tokens)
    except (TemplateError, ValueError) as error:
        raise ModelError(
            f"The chat template rejects the concept's chats: {error}.",
            "Remove what it rejects, such as system turns, or set another `chat_template`.",
            code="chat-template-rejects",
        ) from None
    longest = max(train.all.longest, validation.all.longest, generated.longest)
    maximum = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    if maximum and longest > maximum:
        message = f"The longest text has {longest} tokens, the model supports {maximum}."
        hint = "Shorten the examples, or set a lower `max_new_tokens`."
        report.findings.append(Finding("warning", "text-too-long", message, hint))
    return TextLengths(train, validation, generated)


def _workload(
    report: PreflightReport,
    skeleton: ModelSkeleton,
    adapted: tuple[str, ...],
    texts: TextLengths,
    paired: bool,
) -> Workload:
    config = report.config
    assert skeleton.layout is not None
    assert report.layers is not None
    return Workload(
        load=config.load,
        method=config.method,
        max_new_tokens=config.data.max_new_tokens,
        model=skeleton.model,
        layout=skeleton.layout,
        itemsize=skeleton.model.dtype.itemsize,
        checkpoint_bytes=skeleton.files.size if skeleton.quantization else 0,
        hardware=report.hardware,
        layers=report.layers,
        adapted=adapted,
        paired=paired,
        texts=texts,
    )
