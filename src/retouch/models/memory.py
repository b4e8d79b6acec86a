"""What to do when memory runs out: half as much at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(error)


def give_back() -> None:
    """Let go of what nobody holds any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_parts(run: Callable[[Sequence[In]], list[Out]], rows: Sequence[In]) -> list[Out]:
    """`run(rows)`, in halves where memory runs out; one row that does not fit is an error."""
    try:
        return run(rows)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) or len(rows) < 2:
            raise
    # Outside of the handler, whose traceback would hold on to what was allocated.
    give_back()
    half = len(rows) // 2
    return in_parts(run, rows[:half]) + in_parts(run, rows[half:])
