"""States that are kept for a whole edit: on the device while they fit, in memory, or on disk.

What an edit keeps grows with its rows, not with the model: rows x tokens x hidden numbers for every
block that is kept. The file is the process's own, has no name, and is gone with it.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from retouch.core.errors import ModelError

SHARE = 0.5  # of the memory that is free, where nothing is said
SMALL = 2**16  # bytes; what is smaller is not worth a copy at every step

Get = Callable[[], Any]


@dataclass
class _Room:
    """A budget of bytes."""

    left: int

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


class StateStore:
    """Keeps tensors and hands them out on the device.

    Attributes:
        on_device: bytes kept on the device.
        in_memory: bytes kept in memory; on a CPU that is the device.
        on_disk: bytes kept in the memory-mapped file.
    """

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        """Set the budget, in bytes of the device and as many of memory; none: half of the free."""
        self._device, self._given = device, budget
        self._gpu = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forget everything; whoever holds a tensor still has it."""
        self.on_device = self.in_memory = self.on_disk = 0
        memory = self._given or int(SHARE * psutil.virtual_memory().available)
        free = int(SHARE * torch.cuda.mem_get_info(self._device)[0]) if self._gpu else 0
        self._near = _Room((self._given or free) if self._gpu else 0)
        self._memory = _Room(memory)
        self._file: Any = None

    def keep(self, value: Any) -> Get:
        """Keep a tensor, or a tuple, list or dict with tensors in it; what comes back gets it.

        A tensor that comes up several times, as the mask of all blocks does, is kept once.
        """
        return self._keep(value, {})

    def _keep(self, value: Any, known: dict[int, Get]) -> Get:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                known[id(value)] = self._tensor(value)
            return known[id(value)]
        if isinstance(value, dict):
            named = {key: self._keep(one, known) for key, one in value.items()}
            return lambda: {key: get() for key, get in named.items()}
        if type(value) in (tuple, list):
            kind, parts = type(value), [self._keep(one, known) for one in value]
            return lambda: kind(get() for get in parts)
        return lambda: value

    def _tensor(self, tensor: torch.Tensor) -> Get:
        tensor = tensor.detach()
        size = tensor.numel() * tensor.element_size()
        if size <= SMALL or (self._gpu and self._near.take(size)):
            self.on_device += size if self._gpu else 0
            return lambda: tensor
        if self._memory.take(size):
            self.in_memory += size
            if not self._gpu:
                return lambda: tensor
            # Pinned, so that the copy to the device waits for nothing.
            held = tensor.cpu().pin_memory()
            return lambda: held.to(self._device, non_blocking=True)
        self.on_disk += size
        mapped = self._write(tensor)
        return lambda: mapped.to(self._device, copy=True)

    def _write(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the tensor in the file, read from disk when it is used."""
        raw = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            begin = self._file.seek(0, 2)
            self._file.write(raw.data)
            self._file.flush()
            # Copy on write, since torch takes no array that is read-only; nobody writes.
            mapped = np.memmap(self._file, np.uint8, "c", begin, raw.shape)
        except OSError as error:
            raise ModelError(
                f"The rows' states do not fit into {tempfile.gettempdir()}: {error.strerror}.",
                "Set TMPDIR to a larger disk, raise --cache-memory or lower --retain.",
            ) from None
        return torch.from_numpy(mapped).view(tensor.dtype).view(tensor.shape)
