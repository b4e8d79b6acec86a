"""What to do when memory runs out: half as much at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(error)


def free_memory() -> None:
    """Let go of what nobody holds any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split_on_oom(run: Callable[[Sequence[In]], list[Out]], rows: Sequence[In]) -> list[Out]:
    """`run(rows)`, in halves where memory runs out; one row that does not fit is an error."""
    try:
        return run(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(rows) < 2:
            raise
    # Outside of the handler, whose traceback would hold on to what was allocated.
    free_memory()
    half = len(rows) // 2
    return split_on_oom(run, rows[:half]) + split_on_oom(run, rows[half:])
