"""The processes that make one edit together, each with its own device; mostly there is one.

`accelerate launch -m retouch edit ...` starts several. They share out rows and cached states, add
their gradients up, and do all else alike, so that they end in the same weights. The first one alone
writes and prints.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from retouch.core.launch import launched_processes

T = TypeVar("T")


def init() -> None:
    """Meet the other processes, if a launcher has started any; does nothing a second time."""
    if launched_processes() > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(shutdown)


def shutdown() -> None:
    """Part from the others, so that none waits for one that has ended."""
    if dist.is_initialized():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(kind: str) -> str:
    """The device of this process, of a kind: `cuda` is the one that the launcher gave it."""
    if kind == "cuda" and world_size() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return kind


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce(tensors: Iterable[torch.Tensor]) -> None:
    """Put the sum over all processes into each tensor; one message for those of a kind."""
    if world_size() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast(value: T) -> T:
    """What the first process has; the others' is dropped."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(mine: dict[int, Any]) -> dict[int, Any]:
    """All processes' entries in one mapping; no two processes have the same key."""
    if world_size() == 1:
        return mine
    boxes: list[dict[int, Any] | None] = [None] * world_size()
    dist.all_gather_object(boxes, mine)
    return {key: value for box in boxes for key, value in (box or {}).items()}


def shard(rows: Sequence[T]) -> Sequence[T]:
    """Every n-th of the rows, from this process's number on."""
    return rows[rank() :: world_size()]
