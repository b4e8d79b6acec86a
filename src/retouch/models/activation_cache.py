"""Tensors kept for a whole training: on the device while they fit, in memory, or on disk.

The amount grows with the examples, not with the model: examples x tokens x hidden values for every
layer that is cached. The file on disk has no name and is deleted with the process.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import psutil
import torch

from retouch.core.errors import ModelError

DEFAULT_SHARE = 0.5  # of the free memory, where no limit is given
SMALL = 2**16  # bytes; smaller tensors are not worth a copy at every step

Cached = Callable[[], Any]
"""A function that returns what was cached, on the device."""


class ActivationCache:
    """Caches tensors and returns them on the device.

    `on_device`, `in_memory` (on a CPU, the device) and `on_disk` count the cached bytes.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        """Set the limit, in bytes of the device and as many of memory (default: half of each)."""
        self._device, self._limit = device, limit
        self._gpu = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forget everything; tensors that are in use stay valid."""
        self.on_device = self.in_memory = self.on_disk = 0
        free = torch.cuda.mem_get_info(self._device)[0] if self._gpu else 0
        self._device_left = (self._limit or int(DEFAULT_SHARE * free)) if self._gpu else 0
        available = psutil.virtual_memory().available
        self._memory_left = self._limit or int(DEFAULT_SHARE * available)
        self._file: Any = None

    def put(self, value: Any) -> Cached:
        """Cache a tensor, or a tuple, list, dict or dataclass with tensors in it.

        A tensor that occurs several times, such as the mask of all blocks, is cached once.
        """
        return self._put(value, {})

    def _put(self, value: Any, known: dict[int, Cached]) -> Cached:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                known[id(value)] = self._put_tensor(value)
            return known[id(value)]
        if isinstance(value, dict):
            named = {key: self._put(one, known) for key, one in value.items()}
            return lambda: {key: get() for key, get in named.items()}
        if is_dataclass(value) and not isinstance(value, type):
            made, names = type(value), [one.name for one in fields(value)]
            given = {name: self._put(getattr(value, name), known) for name in names}
            return lambda: made(**{name: get() for name, get in given.items()})
        if type(value) in (tuple, list):
            kind, parts = type(value), [self._put(one, known) for one in value]
            return lambda: kind(get() for get in parts)
        return lambda: value

    def _put_tensor(self, tensor: torch.Tensor) -> Cached:
        tensor = tensor.detach()
        size = tensor.numel() * tensor.element_size()
        if self._gpu and size > SMALL and size <= self._device_left:
            self._device_left -= size
            self.on_device += size
            return lambda: tensor
        if size <= SMALL:
            self.on_device += size if self._gpu else 0
            return lambda: tensor
        if size <= self._memory_left:
            self._memory_left -= size
            self.in_memory += size
            if not self._gpu:
                return lambda: tensor
            # Pinned, so that the copy to the device is asynchronous.
            pinned = tensor.cpu().pin_memory()
            return lambda: pinned.to(self._device, non_blocking=True)
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
            # Copy on write, since torch accepts no read-only array; nothing is written.
            mapped = np.memmap(self._file, np.uint8, "c", begin, raw.shape)
        except OSError as error:
            folder = tempfile.gettempdir()
            message = f"The cached activations do not fit into {folder}: {error.strerror}."
            hint = "Set TMPDIR to a larger disk, raise `activation_cache` or lower `num_retain`."
            raise ModelError(message, hint, code="disk-full") from None
        return torch.from_numpy(mapped).view(tensor.dtype).view(tensor.shape)
