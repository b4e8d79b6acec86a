"""Retry with smaller batches when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from retouch.core.errors import reports_no_memory

In = TypeVar("In")
Out = TypeVar("Out")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that the memory of a device or of the host is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or reports_no_memory(error)


def free_memory() -> None:
    """Release unreferenced memory, including the device's cached blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split_on_oom(run: Callable[[Sequence[In]], list[Out]], rows: Sequence[In]) -> list[Out]:
    """`run(rows)`; where memory runs out, the two halves of `rows` one after the other.

    Raises:
        RuntimeError: a single row does not fit into memory.
    """
    try:
        return run(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(rows) < 2:
            raise
    # Outside of the handler: its traceback references the tensors that have to be freed.
    free_memory()
    half = len(rows) // 2
    return split_on_oom(run, rows[:half]) + split_on_oom(run, rows[half:])
