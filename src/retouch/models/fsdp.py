"""One model shared out over several processes: each keeps a part of every frozen weight."""

from __future__ import annotations

from typing import Any

import torch

from retouch.core.errors import ConfigError
from retouch.models import distributed
from retouch.models.layout import ModelLayout


def shard(model: Any, layout: ModelLayout, device: torch.device) -> None:
    """Share the blocks' weights out over the processes (FSDP2), before there is an adapter.

    A block's weights come together when it runs and part again afterwards. What is attached later
    is not shared out: an adapter is small, every process has all of it, and its gradients are added
    up as those of unshared models are. Each block is shared out by itself, since the segment runs
    blocks without the model around them; embeddings and head stay whole.

    Raises:
        ConfigError: there is one process alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if distributed.world_size() == 1:
        raise ConfigError(
            "`--shard` shares a model out over processes, and there is one alone.",
            "Start several: accelerate launch --num_processes N -m retouch edit ...",
        )
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in layout.blocks(model):
        # Said outright: run by itself each block is a root, whose weights FSDP keeps together after
        # the forward pass, and after one pass of the model every process would have all of it.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for name, module in model.named_modules():
        # What lies outside of the blocks: moved leaf by leaf, since the blocks have their places.
        if not name.startswith(f"{layout.path}."):
            _move(module, device)


def _move(module: torch.nn.Module, device: torch.device) -> None:
    """Move the tensors that a module holds itself."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))
