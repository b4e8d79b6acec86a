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

from retouch.concepts.catalog import builtin_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import RetouchError
from retouch.core.finding import LEVELS, Finding
from retouch.core.types import Concept
from retouch.delivery.gate import check_weakening
from retouch.editing.fit import disk_fits, download_fits, memory_fits
from retouch.editing.layers import Layers, choose_layers
from retouch.editing.room import Memory, disk_bytes, memory
from retouch.editing.rows import Drawn, draw, first_draw
from retouch.editing.texts import measured, sides_of
from retouch.editing.workload import Foreseen, Workload, foresee, phases
from retouch.models.footprint import adapter_numbers, cache_bytes, count, fused
from retouch.models.load import find_device, find_dtype
from retouch.models.machine import Machine, measure
from retouch.models.sketch import Sketch, sketch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Diagnosis:
    """What is known of an edit before its weights are loaded.

    Attributes:
        config: the edit that was asked for.
        findings: what would stop it first, then notes, then what is fine.
        architecture: the name of the model's class; empty where it is not known.
        numbers: of the model's weights.
        blocks: how many the model has.
        dtype: of the loaded weights.
        layers: the blocks of the edit, as far as they can be foreseen.
        adapter: trainable numbers.
        machine: what was measured; None where there is no such device.
        memory: bytes on the device; None where something that it rests on is not known.
        budget: bytes of the device that the edit may take.
        phases: the parts of the edit with their seconds.
        disk: bytes of the run directory.
    """

    config: EditConfig
    findings: tuple[Finding, ...]
    architecture: str = ""
    numbers: int = 0
    blocks: int = 0
    dtype: str = ""
    layers: Layers | None = None
    adapter: int = 0
    machine: Machine | None = None
    memory: Memory | None = None
    budget: int | None = None
    phases: tuple[Foreseen, ...] = ()
    disk: int = 0

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What would stop the edit."""
        return tuple(finding for finding in self.findings if finding.level == "stop")

    @property
    def seconds(self) -> float | None:
        """The edit's, with what is measured after it; None where they are not foreseen."""
        return sum(part.seconds for part in self.phases) if self.phases else None

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        machine, layers, held = self.machine, self.layers, self.memory
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
            "memory_budget": self.budget,
            "seconds": self.seconds,
            "phases": [asdict(part.phase) | {"seconds": part.seconds} for part in self.phases],
            "disk": self.disk,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(
    config: EditConfig, *, device_memory: int | None = None, out: Path = Path("runs")
) -> Diagnosis:
    """Look at everything that an edit needs, and load no weights.

    Args:
        config: the edit.
        device_memory: bytes of the device that it may take; none given: what is free.
        out: where the run directory would be.

    Raises:
        DataError: the concept cannot be read.
    """
    concept = load_concept(config.concept)
    found: list[Finding] = []
    _tried(found, "safety", lambda: check_weakening(config, concept))
    where = _tried(found, "device", lambda: find_device(config.device))
    kind = find_dtype(config.dtype, where or torch.device("cpu"))
    machine = None if where is None else _tried(found, "device", lambda: measure(where, kind))
    seen = sketch(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=kind,
    )
    found += seen.findings
    diagnosis = Diagnosis(
        config,
        (),
        dtype=str(kind).removeprefix("torch."),
        machine=machine,
        budget=device_memory or (machine.free if machine else None),
    )
    diagnosis = _foresee(diagnosis, seen, concept, kind, found, out)
    return replace(diagnosis, findings=tuple(sorted(found, key=lambda f: LEVELS.index(f.level))))


def _tried(found: list[Finding], about: str, do: Callable[[], Result]) -> Result | None:
    """The result; what would stop the edit becomes a finding."""
    try:
        return do()
    except RetouchError as error:
        found.append(Finding("stop", about, error.what, error.mend))
        return None


def _foresee(
    diagnosis: Diagnosis,
    seen: Sketch,
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
    names = _tried(found, "layers", lambda: layout.linears(model, layers.adapted, config.modules))
    if names is None:
        return replace(diagnosis, layers=layers)
    found += _unreached(seen, layers)
    if config.tamper:
        what = "What the adversary of --tamper computes and holds is not foreseen: it comes on top."
        found.append(Finding("note", "time", what))
    adapter = adapter_numbers(model, names, config.rank)
    diagnosis = replace(diagnosis, layers=layers, adapter=adapter)
    texts = (
        None
        if rows is None or seen.tokenizer is None
        else _texts(found, seen, concept, config, rows)
    )
    if texts is None:
        return diagnosis
    hidden = int(model.config.get_text_config().hidden_size)
    token = cache_bytes(model.config, 1, 1, kind.itemsize)
    work = Workload(config, counts, layers, adapter, hidden, token, paired, *texts)
    return _reckoned(diagnosis, seen, work, set(names), kind, found, out)


def _reckoned(
    diagnosis: Diagnosis,
    seen: Sketch,
    work: Workload,
    adapted: set[str],
    kind: torch.dtype,
    found: list[Finding],
    out: Path,
) -> Diagnosis:
    """Memory, disk and time of a workload, and whether there is room for it."""
    model, layout = seen.model, seen.layout
    assert layout is not None
    weights = seen.shards.size if seen.quantized else work.counts.total * kind.itemsize
    held = memory(work, model, layout, adapted, weights, kind.itemsize)
    diagnosis = replace(diagnosis, memory=held, disk=disk_bytes(work))
    found += disk_fits(diagnosis.disk, out)
    if seen.local is None and seen.shards.size:
        found.append(download_fits(seen.shards.size))
    machine, budget = diagnosis.machine, diagnosis.budget
    if machine is None or budget is None:
        return diagnosis
    found += memory_fits(held, budget, machine, wide=kind.itemsize == 4)
    return replace(diagnosis, phases=tuple(foresee(phases(work, kind.itemsize), machine)))


def _rows(found: list[Finding], concept: Concept, config: EditConfig) -> tuple[Drawn, Drawn] | None:
    """The rows of the training and of the validation split."""

    def both() -> tuple[Drawn, Drawn]:
        train = draw(first_draw(config, "train"), concept, config, "train")
        return train, draw(first_draw(config, "validation"), concept, config, "validation")

    rows = _tried(found, "concept", both)
    if rows is not None:
        train = rows[0]
        pairs = "in pairs" if train.paired else "without pairs"
        what = (
            f"{len(train.source)} rows of {concept.name} to move, {len(train.target)} to move "
            f"towards ({pairs}), {len(train.hold)} to hold."
        )
        found.append(Finding("fine", "concept", what))
    return rows


def _layers(found: list[Finding], config: EditConfig, depth: int, paired: bool) -> Layers | None:
    layers = _tried(found, "layers", lambda: choose_layers(config, None, depth))
    if layers is None or not paired or config.taps is not None:
        return layers
    why = "found by patching once the weights are loaded; foreseen with the middle of the model"
    return replace(layers, why=why)


def _unreached(seen: Sketch, layers: Layers) -> list[Finding]:
    """Experts that are fused get no adapter: the rest of the block has to do the work."""
    assert seen.layout is not None
    blocks = seen.layout.blocks(seen.model)
    names = sorted({name for i in layers.adapted for name in fused(blocks[i])})
    if not names:
        return []
    what = f"The experts are fused tensors ({', '.join(names)}) and get no adapter; attention does."
    return [Finding("note", "layers", what)]


def _texts(
    found: list[Finding],
    seen: Sketch,
    concept: Concept,
    config: EditConfig,
    rows: tuple[Drawn, Drawn],
) -> tuple[Any, ...] | None:
    """The lengths of all texts: to learn from, to choose by, asked and compared in the end."""
    others = [name for name in builtin_names() if name != concept.name]
    concepts = {
        "all": [concept, *map(load_concept, others)] if config.measure == "all" else [],
        "own": [concept],
        "nothing": [],
    }[config.measure]
    try:
        train, validation = (sides_of(seen.tokenizer, drawn, config) for drawn in rows)
        asked, compared = measured(seen.tokenizer, concepts, config)
    except (TemplateError, ValueError) as error:
        what = f"The chat template refuses the concept's chats: {error}."
        mend = "Leave out what it refuses, such as system turns, or take another chat template."
        found.append(Finding("stop", "tokenizer", what, mend))
        return None
    longest = max(train.every.longest, validation.every.longest, asked.longest)
    most = getattr(seen.model.config.get_text_config(), "max_position_embeddings", None)
    if most and longest > most:
        what = f"The longest text has {longest} tokens, the model takes {most}."
        found.append(Finding("note", "concept", what, "Shorten the rows, or --reply-tokens."))
    return train, validation, asked, compared
