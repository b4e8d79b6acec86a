"""Measure the hardware of an edit: free memory, arithmetic and memory throughput."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from retouch.core.errors import ModelError
from retouch.models.free_memory import free_bytes, free_host_bytes

SECONDS = 0.15  # that one measurement takes


@dataclass(frozen=True)
class Hardware:
    """A device and its measured limits."""

    device: str  # where the model would be, such as `cuda:0`
    label: str  # the device with the name of the GPU or the number of threads
    free_bytes: int
    host_free_bytes: int  # the same on the CPU
    flops_per_second: float  # of a matrix product
    bytes_per_second: float  # read or written in the device's memory
    upload_bytes_per_second: float = 0.0  # copied from host memory; 0 on the CPU

    @property
    def is_cpu(self) -> bool:
        """Whether the device is the CPU, whose memory is host memory."""
        return self.device.startswith("cpu")


def measure_hardware(device: torch.device, dtype: torch.dtype) -> Hardware:
    """Measure a device, in well under a second.

    Raises:
        ModelError: the device does not support `dtype`.
    """
    on_gpu = device.type == "cuda"
    try:
        flops = _matmul_flops(device, dtype, 4096 if on_gpu else 512)
        bandwidth = 2 * _copy_speed(device, device, 2**28 if on_gpu else 2**27)
        upload = _copy_speed(torch.device("cpu"), device, 2**27) if on_gpu else 0.0
    except RuntimeError as error:
        raise ModelError(
            f"{device} does not support {str(dtype).removeprefix('torch.')}: "
            f"{str(error).splitlines()[0]}.",
            "Set another `dtype`; float32 works on every device.",
            code="dtype-unsupported",
        ) from None
    threads = torch.get_num_threads()
    name = f"{threads} thread{'s' if threads > 1 else ''}"
    return Hardware(
        device=str(device),
        label=f"{device} ({torch.cuda.get_device_name(device) if on_gpu else name})",
        free_bytes=free_bytes(device),
        host_free_bytes=free_host_bytes(),
        flops_per_second=flops,
        bytes_per_second=bandwidth,
        upload_bytes_per_second=upload,
    )


def _matmul_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    r"""Operations per second of the product of two `[size, size]` matrices: $2\,size^3$ each."""
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    # Normalisation and softmax are what a device lacks first for a dtype.
    torch.nn.functional.layer_norm(matrix, (size,)).softmax(-1)
    return 2.0 * size**3 / _fastest(lambda: matrix @ matrix, device)


def _copy_speed(source: torch.device, device: torch.device, size: int) -> float:
    """Bytes per second of a copy of `size` bytes: as many are read as are written."""
    data = torch.zeros(size, device=source, dtype=torch.uint8)
    copy = torch.empty(size, device=device, dtype=torch.uint8)
    return size / _fastest(lambda: copy.copy_(data), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several runs, which other processes disturbed least."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    # Imported when needed: a CUDA build warns where there is a compiler and no GPU.
    from torch.utils.benchmark import Timer

    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return max(min(timer.blocked_autorange(min_run_time=SECONDS).times), 1e-9)
