"""A model that is larger than the device: the blocks that are trained stay there, the others come.

While blocks are trained, nothing below the first and nothing above the last of them has to be on
the device. It does when the whole model runs: for the base's responses, for the segment's inputs,
once a round for the judge. Then the other blocks come one after the other, out of memory or, where
they find no room there, straight out of the checkpoint's files (accelerate's offloading).
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

# Of the budget for weights that stay: the rest is for states, activations and responses.
SHARE = 0.6
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h: from which size on a micro_batch is the system's own


class OffloadPlan:
    """Where the parts of a model are, within a budget of the device's memory.

    Attributes:
        budget: bytes of the device that the edit may take.
        resident: the blocks that stay on the device.
        origin: where the others come from: `cpu`, the machine's memory, or `disk`.
    """

    def __init__(
        self, model: Any, layout: ModelLayout, device: torch.device, budget: int, itemsize: int
    ) -> None:
        """Grid for a model on the meta device, of weights of `itemsize` bytes a number.

        Raises:
            ModelError: what has to be on the device in any case does not fit.
        """
        self.budget, self.resident = budget, frozenset[int]()
        self._layout, self._device = layout, device
        self._around = tuple(_around(model, layout.path))
        self._blocks = [itemsize * _numbers(block) for block in layout.blocks(model)]
        self._outside = itemsize * _numbers(model) - sum(self._blocks)
        self.origin = "disk"
        if device.type == "cuda" and sum(self._blocks) < SHARE * psutil.virtual_memory().available:
            self.origin = "cpu"
        if self.whole:
            self.resident = frozenset(range(layout.depth))
        else:
            self._check(())

    @property
    def whole(self) -> bool:
        """Whether all of the model finds room."""
        return self._outside + sum(self._blocks) <= SHARE * self.budget

    @property
    def streamed_bytes(self) -> tuple[int, ...]:
        """Bytes of each block that comes whenever it runs; 0 where a block stays."""
        return tuple(0 if i in self.resident else n for i, n in enumerate(self._blocks))

    @property
    def weights(self) -> int:
        """Bytes of weights on the device at the most: what stays, and one block that comes."""
        return self._needs(self.resident)

    @property
    def free_bytes(self) -> int:
        """Bytes of the device for everything else."""
        return max(self.budget - self.weights, 0)

    def loading(self) -> dict[str, Any]:
        """Options of transformers by which it is editable so.

        Files that have to be written anew, as fused weights are, go to the system's temporary
        folder, and stay there as long as this object.
        """
        if self._device.type == "cuda":
            # What would go beyond the budget is an error that can be inputs, and halved.
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.budget / total), self._device)
        if self.whole:
            return {}
        if self._device.type == "cpu":
            _give_back_at_once()
        where: dict[str, Any] = dict.fromkeys(self._around, str(self._device))
        for i in range(self._layout.depth):
            where[f"{self._layout.path}.{i}"] = self.origin
        folder = tempfile.mkdtemp(prefix="retouch-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return {"device_map": where, "offload_folder": folder}

    def keep_on_device(self, model: Any, blocks: Iterable[int]) -> None:
        """Let blocks stay on the device from now on, and others too while there is room.

        Raises:
            ModelError: they do not fit into the budget.
        """
        wanted = frozenset(blocks) - self.resident
        self._check(wanted)
        every = self._layout.blocks(model)
        for i in sorted(wanted | self._more(wanted)):
            for module in every[i].modules():
                _bring(module, self._device)
            self.resident |= {i}

    def _more(self, wanted: Collection[int]) -> frozenset[int]:
        """The lowest of the other blocks, as many as find room too: each spares a way."""
        stay = self.resident | frozenset(wanted)
        more: frozenset[int] = frozenset()
        for i in range(self._layout.depth):
            if i not in stay and self._needs(stay | more | {i}) <= SHARE * self.budget:
                more |= {i}
        return more

    def _needs(self, stay: Collection[int]) -> int:
        """Bytes with these blocks staying, and the largest of the others coming by."""
        come = max((size for i, size in enumerate(self._blocks) if i not in stay), default=0)
        return self._outside + sum(self._blocks[i] for i in stay) + come

    def _check(self, blocks: Iterable[int]) -> None:
        """Raise if the blocks do not fit beside what stays."""
        stay = self.resident | set(blocks)
        needs = self._needs(stay)
        if needs > SHARE * self.budget:
            least = size_text(int(needs / SHARE))
            raise ModelError(
                f"--device-memory {size_text(self.budget)} is too little: embeddings and head, "
                f"{f'{len(stay)} blocks that are trained' if stay else 'no block at all'} and one "
                f"that comes by take {size_text(needs)}, and the rest of the edit needs room too.",
                f"Give at least {least}, or adapt fewer blocks (--layers, --read_layers).",
            )


def _give_back_at_once() -> None:
    """Have the C library return large micro_batches to the system as they are freed.

    Otherwise glibc keeps what a block took that came and went, and the process grows by nearly the
    whole model, though nobody holds it. Where the library is another one, nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())


def _around(model: nn.Module, path: str) -> Iterator[str]:
    """The full names of the largest modules that the list of blocks at `path` is no part of."""
    for name, module in model.named_modules():
        above = name.rpartition(".")[0]
        if name == path or path.startswith(f"{name}.") or not name:
            # On the way to the blocks: only what such a module holds itself is outside of them.
            held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            yield from (f"{name}.{own}".strip(".") for own, _ in held)
        elif (not above or path.startswith(f"{above}.")) and any(True for _ in _tensors(module)):
            yield name


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bring(module: nn.Module, device: torch.device) -> None:
    """Put a module's own weights on the device for good, from where its hook takes them."""
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import set_module_tensor_to_device

    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return
    kept = hook.weights_map
    remove_hook_from_module(module)
    for name, tensor in [*module.named_parameters(recurse=False)]:
        if tensor.device.type == "meta":
            set_module_tensor_to_device(module, name, device, value=kept[name])
