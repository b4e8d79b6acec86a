"""Whether an edit fits: memory of the device and of the machine, disk; and what would make room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from retouch.core.finding import Finding
from retouch.core.units import size_text
from retouch.preflight.memory import Memory

CLOSE = 0.85  # of what is free: what is foreseen is an estimate, and more than this may not fit


def memory_fits(
    held: Memory, budget: int, ways: Sequence[str] = (), halved: int | None = None
) -> Finding:
    """Whether the device, given `budget` bytes of it, holds what the edit holds.

    Args:
        held: what is foreseen.
        budget: bytes of the device that are to be had.
        ways: options with which it would fit, each with its result.
        halved: the rows at once at which it would fit, where the edit finds that by itself.
    """
    needs = f"{size_text(held.peak)} foreseen, {size_text(budget)} to be had"
    if held.peak <= CLOSE * budget:
        return Finding("ok", "memory", f"It fits: {needs}.")
    if held.peak <= budget:
        return Finding("warning", "memory", f"It may just fit: {needs}.", "Free some beforehand.")
    if halved is not None:
        what = f"Not all fits at once: {needs}. The edit runs fewer rows at once by itself."
        return Finding("warning", "memory", what, f"Foreseen to fit with --at-once {halved}.")
    alone = held.weights > budget
    if alone:
        what = f"The weights alone take {size_text(held.weights)}: {needs}."
        hint = "Take a machine with more, or a smaller model"
    else:
        what = f"It does not fit: {needs}."
        hint = "Take fewer --labels and --retain, or a lower --response-tokens"
        # Up to 256 rows response together, whatever the batch.
        if held.beside != held.generation:
            hint = "Take a smaller --at-once, fewer --labels and --retain, or fewer --layers"
    return Finding("error", "memory", what, "; or it fits ".join([hint, *ways]) + ".")


def loading_fits(weights: int, ram: int, wide: bool) -> list[Finding]:
    """Whether the machine's memory holds the weights, through which they come to a device.

    `wide` says that they are in float32, so that they could be halved.
    """
    if weights <= ram:
        return []
    what = (
        f"The weights are editable into the machine's memory first: {size_text(weights)}, "
        f"and {size_text(ram)} are free."
    )
    half = ", --dtype bfloat16" if wide else ""
    return [Finding("error", "memory", what, f"Take a --device-memory below that{half}.")]


def states_fit(held: Memory) -> list[Finding]:
    """Whether there is room for the states that lie in a file."""
    if not held.on_disk:
        return []
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    what = f"{size_text(held.on_disk)} of states lie in a file in {where}"
    if held.on_disk > free:
        hint = "Set TMPDIR to a larger disk, raise --cache-memory or lower --retain."
        return [Finding("error", "disk", f"{what}, where {size_text(free)} are free.", hint)]
    return [Finding("warning", "disk", f"{what}, and are read from there at every step.")]


def disk_fits(needed: int, out: Path) -> list[Finding]:
    """Whether there is room for a run directory of `needed` bytes at `out`."""
    free = shutil.disk_usage(_nearest(out)).free
    if needed <= free:
        return []
    what = f"The run takes {size_text(needed)} of disk, {size_text(free)} are free."
    return [Finding("error", "disk", what, "Free some, or give another --out.")]


def download_fits(size: int) -> Finding:
    """Whether there is room for `size` bytes of weights in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    free = shutil.disk_usage(_nearest(Path(HF_HUB_CACHE))).free
    what = f"{size_text(size)} would be downloaded to {HF_HUB_CACHE}, {size_text(free)} are free."
    if size > free:
        return Finding("error", "disk", what, "Free some, or set HF_HOME to where there is room.")
    return Finding("warning", "disk", what)


def _nearest(path: Path) -> Path:
    """The folder itself, or the next one above that is there already."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
