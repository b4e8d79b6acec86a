"""What this machine can do: memory that is free, and how fast it multiplies and reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from retouch.core.errors import ModelError

CGROUP = Path("/sys/fs/cgroup")
LONG = 0.15  # seconds that one measurement may take


@dataclass(frozen=True)
class Machine:
    """A device with what bounds an edit on it.

    Attributes:
        device: where the model would be.
        label: the device for people.
        free: bytes of the device's memory that are free.
        ram: bytes of the machine's memory that are free; the same on the CPU.
        rate: operations a second of a matrix product, measured.
        bandwidth: bytes a second that are read or written, measured.
        upload: bytes a second that come to the device from the machine's memory, measured; 0 on the
            CPU, where there is no such way.
    """

    device: torch.device
    label: str
    free: int
    ram: int
    rate: float
    bandwidth: float
    upload: float = 0.0


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Look at a device and time it for well under a second.

    Raises:
        ModelError: the device does not compute in `dtype`.
    """
    ram = free_memory()
    on_gpu = device.type == "cuda"
    try:
        rate = _matrix_rate(device, dtype, 4096 if on_gpu else 512)
        bandwidth = _bandwidth(device, 2**28 if on_gpu else 2**27)
        upload = _upload(device, 2**27) if on_gpu else 0.0
    except RuntimeError as error:
        raise ModelError(
            f"{device} does not compute in {str(dtype).removeprefix('torch.')}: "
            f"{str(error).splitlines()[0]}.",
            "Choose another --dtype; float32 works everywhere.",
        ) from None
    if on_gpu:
        label = f"{device} ({torch.cuda.get_device_name(device)})"
        free = int(torch.cuda.mem_get_info(device)[0])
    else:
        threads = torch.get_num_threads()
        label = f"{device} ({threads} thread{'s' if threads > 1 else ''})"
        free = ram
    return Machine(device, label, free, ram, rate, bandwidth, upload)


def free_memory() -> int:
    """Bytes of memory that are free, within what a container allows."""
    free = int(psutil.virtual_memory().available)
    try:
        allowed = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(allowed) - used)) if allowed.isdecimal() else free


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    r"""Operations a second of the product of two `[size, size]` matrices: $2\,size^3$ each."""
    left = torch.ones(size, size, device=device, dtype=dtype)
    # What a block does besides: a norm and a softmax are the first to be missing for a dtype.
    torch.nn.functional.layer_norm(left, (size,)).softmax(-1)
    return 2.0 * size**3 / _fastest(lambda: left @ left, device)


def _bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes."""
    source = torch.zeros(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2.0 * size / _fastest(lambda: target.copy_(source), device)


def _upload(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of `size` bytes takes from the machine's memory to a device."""
    source = torch.zeros(size, dtype=torch.uint8)
    target = torch.empty(size, device=device, dtype=torch.uint8)
    return size / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs: what else the machine does only makes it slower."""

    def timed() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed()  # the first run sets things up
    best, end = timed(), time.perf_counter() + LONG
    while time.perf_counter() < end:
        best = min(best, timed())
    return max(best, 1e-9)
