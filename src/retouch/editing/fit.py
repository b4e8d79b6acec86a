"""Whether an edit fits: memory of the device and of the machine, disk; and what would make room."""

from __future__ import annotations

import shutil
from pathlib import Path

from retouch.core.config import EditConfig
from retouch.core.finding import Finding
from retouch.core.size import size_text
from retouch.editing.room import Memory
from retouch.models.machine import Machine

CLOSE = 0.85  # of what is free: what is foreseen is an estimate, and more than this may not fit


def memory_fits(held: Memory, budget: int, machine: Machine, wide: bool) -> list[Finding]:
    """Whether the device, given `budget` bytes of it, and the machine hold what the edit holds.

    `wide` says that the weights are in float32, so that they could be halved.
    """
    found = [_on_device(held, budget, wide)]
    if machine.device.type != "cpu" and held.weights > machine.ram:
        what = (
            f"The weights are loaded into the machine's memory first: {size_text(held.weights)}, "
            f"and {size_text(machine.ram)} are free."
        )
        found.append(Finding("stop", "memory", what, _smaller_weights(wide)))
    return found


def disk_fits(needed: int, out: Path) -> list[Finding]:
    """Whether there is room for a run directory of `needed` bytes at `out`."""
    free = shutil.disk_usage(_nearest(out)).free
    if needed <= free:
        return []
    what = f"The run takes {size_text(needed)} of disk, {size_text(free)} are free."
    return [Finding("stop", "disk", what, "Free some, or give another --out.")]


def _on_device(held: Memory, budget: int, wide: bool) -> Finding:
    needs = f"{size_text(held.peak)} foreseen, {size_text(budget)} to be had"
    if held.weights > budget:
        what = f"The weights alone take {size_text(held.weights)}: {needs}."
        return Finding("stop", "memory", what, _smaller_weights(wide))
    if held.peak > budget:
        # Up to 256 rows reply together, whatever the batch.
        mend = "Take fewer --labels and --retain, or a lower --reply-tokens"
        if held.beside != held.generation:
            mend = "Take a smaller --batch, fewer --labels and --retain, or fewer --layers"
        mend += f"; or {more}." if (more := _options()) else "."
        return Finding("stop", "memory", f"It does not fit: {needs}.", mend)
    if held.peak > CLOSE * budget:
        return Finding("note", "memory", f"It may just fit: {needs}.", "Free some beforehand.")
    return Finding("fine", "memory", f"It fits: {needs}.")


def _options() -> str:
    """The options of this version that make room, in words."""
    known = {
        "device_memory": "--device-memory SIZE, which streams the blocks",
        "quantize": "--quantize 4bit",
    }
    return " or ".join(words for name, words in known.items() if name in EditConfig.model_fields)


def _smaller_weights(wide: bool) -> str:
    half = "--dtype bfloat16" if wide else ""
    choices = ["a machine with more", "a smaller model", half, _options()]
    return f"Take {' or '.join(choice for choice in choices if choice)}."


def download_fits(size: int) -> Finding:
    """Whether there is room for `size` bytes of weights in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    free = shutil.disk_usage(_nearest(Path(HF_HUB_CACHE))).free
    what = f"{size_text(size)} would be downloaded to {HF_HUB_CACHE}, {size_text(free)} are free."
    if size > free:
        return Finding("stop", "disk", what, "Free some, or set HF_HOME to where there is room.")
    return Finding("note", "disk", what)


def _nearest(path: Path) -> Path:
    """The folder itself, or the next one above that is there already."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
