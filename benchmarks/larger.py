"""A model twice the memory that it is given: does it edit, and stay below?

The same case is run whole for scale. On a CPU the device's memory is the process's own, so that
blocks come out of the checkpoint's files (`models/offload_plan.py`).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.loops import seat
from benchmarks.peak import Peak
from benchmarks.workload import Case, draw_prompts, llama, middle, random_model
from retouch.models.load import load

CASE = Case("larger", middle(48), middle(48), llama(48, 512, 1408, 4096, 8), rounds=3)


@dataclass(frozen=True)
class Fitted:
    """One edit of a model from its files.

    Attributes:
        weights: bytes of the model.
        limit: bytes that it was given; None: all of it was editable.
        peak: bytes at the most beyond what the process had before it editable the model.
        seconds: of loading and editing.
    """

    weights: int
    limit: int | None
    peak: int
    seconds: float


def fitted(case: Case = CASE, share: float | None = 0.5, device: str = "cpu") -> Fitted:
    """Edit a model that is given `share` of its own size; None loads all of it."""
    with tempfile.TemporaryDirectory(prefix="retouch-") as folder:
        weights = _written(case, Path(folder))
        limit = None if share is None else int(share * weights)
        began = time.perf_counter()
        with Peak(torch.device(device)) as peak:
            editable = load(folder, device=device, dtype=case.dtype, device_memory=limit)
            editable.keep_on_device((*case.layers, *case.read_layers))
            trainer = seat(editable, case, draw_prompts(case, editable.model.config.vocab_size))
            list(trainer.train())
        return Fitted(weights, limit, peak.bytes, time.perf_counter() - began)


def _written(case: Case, folder: Path) -> int:
    """Write a random model with the built-in one's tokenizer; the bytes of its weights."""
    editable = random_model(case.model, "cpu", case.dtype)
    editable.model.save_pretrained(folder)
    load("pocket").tokenizer.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in editable.model.parameters())
