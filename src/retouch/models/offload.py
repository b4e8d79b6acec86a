"""Offload the layers of a model that exceeds a device memory limit.

Training needs only the segment's blocks on the device. The whole model runs for the base model's
responses, for the segment's inputs and once a round for validation: then the other blocks are
streamed one after the other, from host memory or, where they do not fit there, from the
checkpoint's files (accelerate's offloading).
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import torch
from torch import nn

from retouch.core.errors import ModelError
from retouch.core.units import size_text
from retouch.models.layout import ModelLayout

# Share of the limit for weights; the rest is for cached states, activations and generation.
WEIGHTS_SHARE = 0.6
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h: allocations from this size on are mapped on their own


class OffloadPlan:
    """The placement of a model's weights under a device memory limit, in bytes.

    The `resident` blocks stay on the device. The others are streamed from `source`: `cpu` (host
    memory) or `disk`.
    """

    def __init__(
        self, model: Any, layout: ModelLayout, device: torch.device, limit: int, itemsize: int
    ) -> None:
        """Plan the placement of a model, which may be on the meta device.

        Raises:
            ModelError: embeddings, head and one block exceed the share of the limit for weights.
        """
        self.limit, self.resident = limit, frozenset[int]()
        self._layout, self._device = layout, device
        self._other_modules = tuple(_modules_outside(model, layout.path))
        self._block_bytes = [itemsize * _num_elements(block) for block in layout.blocks(model)]
        self._other_bytes = itemsize * _num_elements(model) - sum(self._block_bytes)
        available = WEIGHTS_SHARE * psutil.virtual_memory().available
        on_host = device.type == "cuda" and sum(self._block_bytes) < available
        self.source = "cpu" if on_host else "disk"
        if self.whole:
            self.resident = frozenset(range(layout.depth))
        else:
            self._check(self.resident)

    @property
    def whole(self) -> bool:
        """Whether the whole model stays on the device."""
        return self._other_bytes + sum(self._block_bytes) <= WEIGHTS_SHARE * self.limit

    @property
    def streamed_bytes(self) -> tuple[int, ...]:
        """Bytes of each block that are streamed whenever it runs; 0 for a resident block."""
        return tuple(0 if i in self.resident else n for i, n in enumerate(self._block_bytes))

    @property
    def weights(self) -> int:
        """Maximum bytes of weights on the device: the resident ones and one streamed block."""
        return self._bytes_with(self.resident)

    @property
    def free_bytes(self) -> int:
        """Bytes of the limit that are left beside the weights."""
        return max(self.limit - self.weights, 0)

    def loading_options(self) -> dict[str, Any]:
        """Options for transformers' `from_pretrained` that place the weights as planned.

        Weights that transformers converts while loading, such as fused ones, are written to a
        temporary folder that is deleted with this object.
        """
        if self._device.type == "cuda":
            # Exceeding the limit then is an out-of-memory error, which halves the batch.
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit / total), self._device)
        if self.whole:
            return {}
        if self._device.type == "cpu":
            # glibc would keep the memory of every block that was streamed and freed, until the
            # process is as large as the model. Other C libraries have no such setting.
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)
        device_map = dict.fromkeys(self._other_modules, str(self._device))
        device_map |= {f"{self._layout.path}.{i}": self.source for i in range(self._layout.depth)}
        folder = tempfile.mkdtemp(prefix="retouch-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return {"device_map": device_map, "offload_folder": folder}

    def keep_on_device(self, model: Any, layers: Iterable[int]) -> None:
        """Move blocks to the device for good, and further ones while the limit allows it.

        Raises:
            ModelError: the given blocks exceed the limit.
        """
        resident = self.resident | frozenset(layers)
        self._check(resident)
        for i in range(self._layout.depth):
            if self._bytes_with(resident | {i}) <= WEIGHTS_SHARE * self.limit:
                resident |= {i}
        blocks = self._layout.blocks(model)
        for i in sorted(resident - self.resident):
            for module in blocks[i].modules():
                _load_own_weights(module, self._device)
        self.resident = resident

    def _bytes_with(self, resident: Collection[int]) -> int:
        """Maximum bytes on the device: these blocks, and the largest of the streamed ones."""
        streamed = [size for i, size in enumerate(self._block_bytes) if i not in resident]
        kept = sum(self._block_bytes[i] for i in resident)
        return self._other_bytes + kept + max(streamed, default=0)

    def _check(self, resident: Collection[int]) -> None:
        needed = self._bytes_with(resident)
        if needed > WEIGHTS_SHARE * self.limit:
            trained = f"{len(resident)} trained layers, " if resident else ""
            raise ModelError(
                f"`max_device_memory` {size_text(self.limit)} is too low: {trained}embeddings, "
                f"head and one streamed layer take {size_text(needed)}, and activations and cached "
                "states need memory too.",
                f"Set at least {size_text(int(needed / WEIGHTS_SHARE))}, or adapt and read fewer "
                "layers (`lora.layers_to_transform`, `discriminator.layers`).",
                code="device-limit-too-low",
            )


def _num_elements(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _modules_outside(model: nn.Module, path: str) -> Iterator[str]:
    """Full names of the largest modules and tensors outside of the block list at `path`."""
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if name == path or path.startswith(f"{name}.") or not name:
            # An ancestor of the blocks: only its own tensors are outside of them.
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            yield from (f"{name}.{tensor_name}".strip(".") for tensor_name, _ in own)
        elif (not parent or path.startswith(f"{parent}.")) and _num_elements(module):
            yield name


def _load_own_weights(module: nn.Module, device: torch.device) -> None:
    """Load a module's own weights to the device for good and remove accelerate's hook."""
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import set_module_tensor_to_device

    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return
    weights = hook.weights_map
    remove_hook_from_module(module)
    for name, tensor in [*module.named_parameters(recurse=False)]:
        if tensor.device.type == "meta":
            set_module_tensor_to_device(module, name, device, value=weights[name])
