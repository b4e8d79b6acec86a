"""Before an edit: what was recognised, what is foreseen, and what would stop it. Loads no weights.

What is foreseen is an estimate, and says so: operations over a measured rate, bytes from shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError

from retouch.concepts.concept import Concept
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ModelError, RetouchError
from retouch.core.finding import LEVELS, Finding
from retouch.models.load import check_options, find_device, find_dtype
from retouch.models.memory_estimate import Counts, adapter_numbers, cache_bytes, count
from retouch.models.weights import bitsandbytes_options
from retouch.preflight.estimate import Outlook, look_ahead
from retouch.preflight.fit import download_fits
from retouch.preflight.hardware import Machine, measure
from retouch.preflight.lengths import measured, sides_of
from retouch.preflight.memory import Frame
from retouch.preflight.skeleton import ModelSkeleton, load_skeleton
from retouch.preflight.suggestions import Situation
from retouch.preflight.workload import Workload
from retouch.reporting.safety_gate import check_weakening
from retouch.task.examples import SampledExamples, draw, example_rng
from retouch.task.layers import LayerSelection, select_layers

Result = TypeVar("Result")


@dataclass(frozen=True)
class Diagnosis:
    """What is known of an edit before its weights are editable.

    Attributes:
        config: the edit that was asked for.
        findings: what would stop it first, then notes, then what is fine.
        architecture: the name of the model's class; empty where it is not known.
        numbers: of the model's weights.
        blocks: how many the model has.
        dtype: of the editable weights.
        layers: the blocks of the edit, as far as they can be foreseen.
        adapter: trainable numbers.
        machine: what was measured; None where there is no such device.
        outlook: memory, time and disk; None where something that they rest on is not known.
    """

    config: EditConfig
    findings: tuple[Finding, ...]
    architecture: str = ""
    numbers: int = 0
    blocks: int = 0
    dtype: str = ""
    layers: LayerSelection | None = None
    adapter: int = 0
    machine: Machine | None = None
    outlook: Outlook | None = None

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What would stop the edit."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def seconds(self) -> float | None:
        """The edit's, with what is measured after it; None where they are not foreseen."""
        parts = self.outlook.phases if self.outlook else ()
        return sum(part.seconds for part in parts) if parts else None

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        machine, layers, ahead = self.machine, self.layers, self.outlook
        held = ahead.memory if ahead else None
        streaming = ahead.streaming if ahead else None
        parts = ahead.phases if ahead else ()
        return {
            "runs": not self.stops,
            "model": self.config.model,
            "architecture": self.architecture,
            "numbers": self.numbers,
            "blocks": self.blocks,
            "dtype": self.dtype,
            "concept": self.config.concept,
            "direction": self.config.direction,
            "layers": None if layers is None else asdict(layers),
            "adapter_numbers": self.adapter,
            "machine": None if machine is None else asdict(machine) | {"device": machine.label},
            "memory": None if held is None else asdict(held) | {"peak": held.peak},
            "memory_budget": ahead.budget if ahead else None,
            "streaming": None if streaming is None else asdict(streaming),
            "seconds": self.seconds,
            "phases": [asdict(part.phase) | {"seconds": part.seconds} for part in parts],
            "disk": ahead.disk if ahead else 0,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(config: EditConfig, *, out: Path = Path("runs")) -> Diagnosis:
    """Look at everything that an edit needs, and load no weights.

    Args:
        config: the edit.
        out: where the run directory would be.

    Raises:
        DataError: the concept cannot be read.
    """
    concept = load_concept(config.concept)
    found: list[Finding] = []
    _tried(found, "safety", lambda: check_weakening(config, concept))
    _options(found, config)
    where = _tried(found, "device", lambda: find_device(config.load.device))
    kind = find_dtype(config.load.dtype, where or torch.device("cpu"))
    if config.load.quantize != "none":
        _tried(found, "quantised", lambda: bitsandbytes_options(config.load.quantize, kind))
    machine = None if where is None else _tried(found, "device", lambda: measure(where, kind))
    seen = load_skeleton(
        config.model,
        revision=config.load.revision,
        trust_remote_code=config.load.trust_remote_code,
        chat_template=config.load.chat_template,
        dtype=kind,
    )
    found += seen.findings
    diagnosis = Diagnosis(config, (), dtype=str(kind).removeprefix("torch."), machine=machine)
    diagnosis = _foresee(diagnosis, seen, concept, kind, found, out)
    return replace(diagnosis, findings=tuple(sorted(found, key=lambda f: LEVELS.index(f.level))))


def _options(found: list[Finding], config: EditConfig) -> None:
    """What is said of the options alone."""

    def check() -> None:
        memory = config.load.max_device_bytes
        check_options(device_memory=memory, quantize=config.load.quantize, shard=config.load.fsdp)

    _tried(found, "options", check)
    if config.load.fsdp:
        what = "What several processes share out is not foreseen: memory and time are those of one."
        found.append(Finding("warning", "memory", what))
    if config.adversary.finetune_steps:
        what = "What the adversary of --tamper computes and holds is not foreseen: it comes on top."
        found.append(Finding("warning", "time", what))


def _tried(found: list[Finding], about: str, do: Callable[[], Result]) -> Result | None:
    """The result; what would stop the edit becomes a finding."""
    try:
        return do()
    except RetouchError as error:
        found.append(Finding("error", about, error.message, error.hint))
        return None


def _foresee(
    diagnosis: Diagnosis,
    seen: ModelSkeleton,
    concept: Concept,
    kind: torch.dtype,
    found: list[Finding],
    out: Path,
) -> Diagnosis:
    """Fill in what can be foreseen; it ends where something that the rest hangs on is missing."""
    config = diagnosis.config
    rows = _rows(found, concept, config)
    if seen.model is None or seen.layout is None:
        return diagnosis
    model, layout = seen.model, seen.layout
    counts = count(model, layout)
    diagnosis = replace(
        diagnosis,
        architecture=type(model).__name__,
        numbers=counts.total,
        blocks=layout.depth,
    )
    paired = rows is not None and rows[0].paired
    layers = _layers(found, config, layout.depth, paired)
    if layers is None:
        return diagnosis
    names = _tried(
        found, "layers", lambda: layout.linears(model, layers.adapted, config.lora.target_modules)
    )
    if names is None:
        return replace(diagnosis, layers=layers)
    found += _unreached(seen, counts, layers)
    adapter = adapter_numbers(model, names, config.lora.r)
    diagnosis = replace(diagnosis, layers=layers, adapter=adapter)
    texts = (
        None
        if rows is None or seen.tokenizer is None
        else _texts(found, seen, concept, config, rows)
    )
    if texts is None:
        return diagnosis
    if seen.local is None and seen.shards.size:
        found.append(download_fits(seen.shards.size))
    text = model.config.get_text_config()
    work = Workload(
        *(config, counts, layers, adapter, int(text.hidden_size), int(text.vocab_size)),
        *(kind.itemsize, cache_bytes(model.config, 1, 1, kind.itemsize), paired, *texts),
    )
    checkpoint = seen.shards.size if seen.quantized else 0
    frame = Frame(model, layout, set(names))
    outlook = look_ahead(Situation(work, frame, diagnosis.machine, checkpoint), out)
    found += outlook.findings
    return replace(diagnosis, outlook=outlook)


def _rows(
    found: list[Finding], concept: Concept, config: EditConfig
) -> tuple[SampledExamples, SampledExamples] | None:
    """The rows of the training and of the validation split."""

    def both() -> tuple[SampledExamples, SampledExamples]:
        train = draw(example_rng(config, "train"), concept, config, "train")
        return train, draw(example_rng(config, "validation"), concept, config, "validation")

    rows = _tried(found, "concept", both)
    if rows is not None:
        train = rows[0]
        pairs = "in pairs" if train.paired else "without pairs"
        what = (
            f"{len(train.source)} rows of {concept.name} to move, {len(train.target)} to move "
            f"towards ({pairs}), {len(train.retain)} to hold."
        )
        found.append(Finding("ok", "concept", what))
    return rows


def _layers(
    found: list[Finding], config: EditConfig, depth: int, paired: bool
) -> LayerSelection | None:
    layers = _tried(found, "layers", lambda: select_layers(config, None, depth))
    if layers is None or not paired or config.discriminator.layers is not None:
        return layers
    why = "found by patching once the weights are editable; foreseen with the middle of the model"
    return replace(layers, why=why)


def _unreached(seen: ModelSkeleton, counts: Counts, layers: LayerSelection) -> list[Finding]:
    """Weights of the adapted blocks that get no adapter: what is reached has to do the work."""
    assert seen.layout is not None
    missed = seen.layout.unreached(seen.model, layers.adapted)
    if not missed:
        return []
    beyond, every = sum(missed.values()), sum(counts.blocks[i] for i in layers.adapted)
    start = len(seen.layout.path) + 1
    kinds = sorted({name[start:].partition(".")[2].removesuffix(".weight") for name in missed})
    named = ", ".join(kinds[:4]) + (f" and {len(kinds) - 4} more" if len(kinds) > 4 else "")
    what = (
        f"{beyond:,} of the {every:,} numbers of the adapted blocks ({beyond / every:.0%}) are in "
        f"no adapter's reach: {named}."
    )
    return [Finding("warning", "layers", what)]


def _texts(
    found: list[Finding],
    seen: ModelSkeleton,
    concept: Concept,
    config: EditConfig,
    rows: tuple[SampledExamples, SampledExamples],
) -> tuple[Any, ...] | None:
    """The lengths of all texts: to learn from, to choose by, asked and compared in the end."""
    others = [name for name in builtin_names() if name != concept.name]
    concepts = {
        "all": [concept, *map(load_concept, others)] if config.evaluation.suites == "all" else [],
        "concept": [concept],
        "none": [],
    }[config.evaluation.suites]
    try:
        train, validation = (sides_of(seen.tokenizer, drawn, config) for drawn in rows)
        asked, compared = measured(seen.tokenizer, concepts, config)
    except ModelError as error:
        found.append(Finding("error", "tokenizer", error.message, error.hint))
        return None
    except (TemplateError, ValueError) as error:
        what = f"The chat template refuses the concept's chats: {error}."
        hint = "Leave out what it refuses, such as system turns, or take another chat template."
        found.append(Finding("error", "tokenizer", what, hint))
        return None
    longest = max(train.every.longest, validation.every.longest, asked.longest)
    most = getattr(seen.model.config.get_text_config(), "max_position_embeddings", None)
    if most and longest > most:
        what = f"The longest text has {longest} tokens, the model takes {most}."
        found.append(Finding("warning", "concept", what, "Shorten the rows, or --response-tokens."))
    return train, validation, asked, compared
