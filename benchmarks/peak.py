"""The memory that a micro_batch of work needs beyond what there was before it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """A context; afterwards `bytes` is its highest memory less what was in use at its beginning.

    On a CPU that is the resident set of the process, everything in it counted: adapters, their
    gradients and moments, cached states, activations, discriminators, and what libraries keep for
    themselves. The model's weights were there before and are not in it. Linux lets a process set
    its high-water mark back; elsewhere `bytes` is by how much the work raised the mark that the
    process had already left, which is less if loading the model took much.

    On CUDA it is what torch has allocated at the most, less what was allocated at the beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self.bytes, self._before = device.type == "cuda", 0, 0

    def __enter__(self) -> Peak:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = _lowered() or _highest()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        after = torch.cuda.max_memory_allocated() if self._cuda else _highest()
        self.bytes = max(0, after - self._before)


def _lowered() -> int:
    """Set the high-water mark to what is resident now, and tell that; 0 where it cannot be done."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return 0
    return _status("VmRSS")


def _highest() -> int:
    """The high-water mark of the resident set, in bytes.

    Linux's own count comes first: `ru_maxrss` also holds what the parent had when it started us.
    """
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    lines = STATUS.read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
