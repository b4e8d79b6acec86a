"""Shard a model's frozen weights over several processes (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch

from retouch.core.errors import ConfigError
from retouch.models import distributed
from retouch.models.layout import ModelLayout


def shard(model: Any, layout: ModelLayout, device: torch.device) -> None:
    """Shard the weights of the blocks over the processes, before an adapter is attached.

    A block's weights are gathered when it runs and freed afterwards. Adapters are attached later
    and are not sharded: they are small, every process holds all of them, and their gradients are
    summed as those of an unsharded model are. Every block is a unit of its own, since the segment
    runs blocks without the model around them; embeddings and head stay whole.

    Raises:
        ConfigError: there is only one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if distributed.world_size() == 1:
        message = "`fsdp` shards a model over several processes, and there is only one."
        hint = "Start several: accelerate launch --num_processes N -m retouch edit ..."
        raise ConfigError(message, hint, code="single-process")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in layout.blocks(model):
        # Explicit, since a block that runs on its own is FSDP's root module, whose weights stay
        # gathered after the forward pass by default.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for name, module in model.named_modules():
        # `model.to(device)` would move the sharded blocks too, which are in place already.
        if name.startswith(f"{layout.path}."):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for buffer_name, buffer in module.named_buffers(recurse=False):
            setattr(module, buffer_name, buffer.to(device))
