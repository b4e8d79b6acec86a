"""Collective operations of the processes that make one edit together; usually there is one.

`accelerate launch -m retouch edit ...` starts several, each with its own device. They divide the
rows of a batch and the cached states, sum their gradients and do everything else identically, so
that all end with the same weights. Only the first one writes files and prints.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from retouch.core.process import launched_processes

T = TypeVar("T")


def init() -> None:
    """Form the process group if a launcher started several processes; idempotent."""
    if launched_processes() > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(shutdown)


def shutdown() -> None:
    """Leave the process group, so that no process waits for one that has ended."""
    if dist.is_initialized():
        dist.destroy_process_group()


# The process group's own numbers, not the launcher's (`core.process`): a caller may have formed the
# group without a launcher, and before `init` no collective operation would work.
def world_size() -> int:
    """The number of processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process in the group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(name: str) -> str:
    """The device of this process: `cuda` becomes the GPU that the launcher assigned to it."""
    if name == "cuda" and world_size() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        dist.barrier()


def all_reduce(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place.

    Tensors of the same dtype and device travel in one message.
    """
    if world_size() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast(value: T) -> T:
    """The first process's `value`, on every process."""
    if world_size() == 1:
        return value
    objects = [value]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def all_gather(entries: dict[int, Any]) -> dict[int, Any]:
    """The entries of all processes in one mapping; their keys must be disjoint."""
    if world_size() == 1:
        return entries
    parts: list[dict[int, Any] | None] = [None] * world_size()
    dist.all_gather_object(parts, entries)
    return {key: value for part in parts for key, value in (part or {}).items()}


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's share of the items: every `world_size()`-th one, from its rank on."""
    return items[rank() :: world_size()]
