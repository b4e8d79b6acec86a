"""Check an edit before its weights are loaded, and estimate its memory, time and disk space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from retouch.concepts.concept import Concept
from retouch.concepts.registry import concept_for_model, with_builtin
from retouch.core.config import EditConfig, LoadConfig
from retouch.core.finding import LEVELS, ErrorsAsFindings, Finding, first_few
from retouch.core.serialization import to_plain
from retouch.evaluation.evaluate import measured_examples
from retouch.models.bfloat16_linears import linears_that_gain
from retouch.models.load import check_load_config, find_device, find_dtype, model_name
from retouch.models.memory_estimate import count_parameters, lora_parameters
from retouch.models.weights import bitsandbytes_config
from retouch.preflight.estimate import Estimate, estimate_edit
from retouch.preflight.findings import check_disk
from retouch.preflight.hardware import Hardware, measure_hardware
from retouch.preflight.skeleton import ModelSkeleton, load_skeleton
from retouch.preflight.workload import Workload, measure_evaluation, measure_split
from retouch.reporting.safety_gate import check_weakening
from retouch.task.layers import LayerSelection, select_layers
from retouch.task.sampling import SampledExamples, example_rng, sample_examples
from retouch.task.text_lengths import check_text_lengths


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
    """Check everything that an edit and its run directory need; no weights are loaded.

    Raises:
        DataError: a concept cannot be read, or is for another model.
    """
    known_as, load = model_name(config.model), config.load
    concept = concept_for_model(config.concept, known_as)
    for name in config.data.retain_concepts:
        concept_for_model(name, known_as)
    report = PreflightReport(config)
    findings = report.findings
    findings += concept.notes
    with ErrorsAsFindings(findings):
        check_weakening(config.direction, config.allow_weakening, concept)
    with ErrorsAsFindings(findings):
        check_load_config(load)
    if load.fsdp:
        message = "Sharding is not estimated: memory and time are those of one process."
        findings.append(Finding("warning", "fsdp-not-estimated", message))
    if config.adversary.finetune_steps:
        message = "Memory and time of the fine-tuning adversary are not estimated."
        findings.append(Finding("warning", "adversary-not-estimated", message))
    device, dtype = None, find_dtype(load.dtype, torch.device("cpu"))
    with ErrorsAsFindings(findings):
        device = find_device(load.device)
        dtype = find_dtype(load.dtype, device)
    report.dtype = str(dtype).removeprefix("torch.")
    with ErrorsAsFindings(findings):
        if load.quantize != "none":
            bitsandbytes_config(load.quantize, dtype)
    skeleton = load_skeleton(config.model, load, dtype)
    findings += skeleton.findings
    if device is not None:
        with ErrorsAsFindings(findings):
            products = _product_dtype(skeleton, load, device, dtype)
            report.hardware = measure_hardware(device, products)
    if not skeleton.local and skeleton.files.size:
        hint = "Free disk space, or set HF_HOME to a folder on a larger disk."
        message, code = "of weights would be downloaded to", "weights-download"
        findings += check_disk(Path(HF_HUB_CACHE), skeleton.files.size, message, hint, code)
    sampled: list[SampledExamples] = []
    with ErrorsAsFindings(findings):
        sampled = _sample(report, concept)
    adapted: list[str] = []
    with ErrorsAsFindings(findings):
        adapted = _describe_model(report, skeleton, bool(sampled) and sampled[0].paired)
    if adapted and sampled and skeleton.tokenizer is not None:
        with ErrorsAsFindings(findings):
            work = _measure_work(report, skeleton, adapted, concept, sampled)
            report.estimate, found = estimate_edit(work, output_dir)
            findings += found
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return report


def _product_dtype(
    skeleton: ModelSkeleton, load: LoadConfig, device: torch.device, dtype: torch.dtype
) -> torch.dtype:
    """The dtype in which the device multiplies most of the weights, which are kept in `dtype`."""
    if skeleton.model is None or device.type != "cpu":
        return dtype
    modules = [one for one in skeleton.model.modules() if type(one) is torch.nn.Linear]
    return torch.bfloat16 if linears_that_gain(modules, load.compute_dtype) else dtype


def _sample(report: PreflightReport, concept: Concept) -> list[SampledExamples]:
    """The examples of the training and of the validation split."""
    seed, direction, data = report.config.seed, report.config.direction, report.config.data
    train, validation = (
        sample_examples(example_rng(seed, split), concept, direction, split, data, seed)
        for split in ("train", "validation")
    )
    pairs = "in pairs" if train.paired else "without pairs"
    message = (
        f"{concept.name}: {len(train.source)} source, {len(train.target)} target ({pairs}) and "
        f"{len(train.retain)} retain examples."
    )
    report.findings.append(Finding("ok", "examples", message))
    return [train, validation]


def _describe_model(report: PreflightReport, skeleton: ModelSkeleton, paired: bool) -> list[str]:
    """Report the model and the layers; the names of the adapted linear layers, if known."""
    config, model, layout = report.config, skeleton.model, skeleton.layout
    if layout is None:
        return []
    counts = count_parameters(model, layout)
    report.architecture, report.num_parameters = type(model).__name__, counts.total
    report.num_layers = layout.depth
    adapted, read = config.lora.layers_to_transform, config.discriminator.layers
    layers = select_layers(
        None, layout.depth, adapted=adapted, read=read, logits=config.loss.uses_logits
    )
    if paired and read is None:
        reason = "found by causal patching after loading; estimated for the middle of the model"
        layers = replace(layers, reason=reason)
    report.layers = layers
    names = layout.linears(model, layers.adapted, config.lora.target_modules)
    report.trainable_parameters = lora_parameters(model, names, config.lora.r)
    if weights := layout.unadapted(model, layers.adapted):
        count, total = sum(weights.values()), sum(counts.blocks[i] for i in layers.adapted)
        start = len(layout.path) + 1
        parts = {name[start:].partition(".")[2].removesuffix(".weight") for name in weights}
        message = (
            f"{count:,} of the {total:,} parameters of the adapted layers ({count / total:.0%}) "
            f"cannot be adapted: {first_few(sorted(parts))}."
        )
        report.findings.append(Finding("warning", "weights-unadapted", message))
    return names


def _measure_work(
    report: PreflightReport,
    skeleton: ModelSkeleton,
    adapted: Sequence[str],
    concept: Concept,
    sampled: Sequence[SampledExamples],
) -> Workload:
    """Measure the texts of the edit, which the chat template may reject."""
    assert skeleton.layout is not None
    assert report.layers is not None
    tokenizer, evaluation, data = skeleton.tokenizer, report.config.evaluation, report.config.data
    concepts = [] if evaluation.suites == "none" else [concept]
    if evaluation.suites == "all":
        concepts = with_builtin(concept, model_name(report.config.model))
    limit = evaluation.limit or None
    train, validation = (measure_split(tokenizer, one, data) for one in sampled)
    generated = measure_evaluation(tokenizer, concepts, limit, evaluation.max_new_tokens)
    longest = max(train.all.longest, validation.all.longest, generated.longest)
    text_config = skeleton.model.config.get_text_config()
    maximum = getattr(text_config, "max_position_embeddings", None)
    texts = [example for one in sampled for example in (*one.source, *one.target, *one.retain)]
    free = report.hardware.free_bytes if report.hardware else None
    weights = sum(one.numel() * one.itemsize for one in skeleton.model.parameters())
    with ErrorsAsFindings(report.findings):
        texts += measured_examples(concepts, "test", limit)
        # Where the weights alone exceed the memory, the texts are not the problem.
        free = None if free is not None and weights > free else free
        check_text_lengths(texts, tokenizer, skeleton.model, skeleton.layout, free)
    known = any(finding.code == "text-too-long" for finding in report.findings)
    if maximum and longest > maximum and not known:
        message = f"The longest text has {longest} tokens, the model supports {maximum}."
        message += " It counts responses as `max_new_tokens`, which may be shorter."
        hint = "Set a lower `max_new_tokens`, or shorten the examples."
        report.findings.append(Finding("warning", "text-too-long", message, hint))
    return Workload(
        load=report.config.load,
        method=report.config.method,
        max_new_tokens=data.max_new_tokens,
        evaluation_max_new_tokens=evaluation.max_new_tokens,
        model=skeleton.model,
        layout=skeleton.layout,
        checkpoint_bytes=skeleton.files.size if skeleton.quantization else 0,
        hardware=report.hardware,
        layers=report.layers,
        adapted=tuple(adapted),
        paired=sampled[0].paired,
        train=train,
        validation=validation,
        generated=generated,
    )
