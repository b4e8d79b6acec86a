"""Check the disk space of a run, of cached activations and of a download."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from retouch.core.finding import Finding
from retouch.core.units import size_text
from retouch.models.memory_estimate import FLOAT32_BYTES
from retouch.preflight.memory import MemoryPlan
from retouch.preflight.workload import Workload


def run_bytes(work: Workload) -> int:
    """Bytes of a run directory: two checkpoints, adapter, discriminators and generations.

    A checkpoint has the adapter five times: weights, average, best, Adam's two moments.
    """
    hidden = max(work.method.discriminator.hidden_size, 1)
    adapter = FLOAT32_BYTES * work.adapter_parameters
    discriminators = 3 * FLOAT32_BYTES * len(work.layers.read) * (work.hidden_size + 2) * hidden
    tokens = work.texts.generated.total + work.texts.train.source.total
    texts = 2 * 4 * tokens + 2**20  # 4 bytes a token, of two models
    return 2 * (5 * adapter + discriminators) + adapter + discriminators + texts


def check_cached_states(memory: MemoryPlan) -> list[Finding]:
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


def check_run(needed: int, output_dir: Path) -> list[Finding]:
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
