"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        cpu = named[0].partition(":")[2].strip() if named else cpu
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "gpu": gpu,
        "torch": torch.__version__,
    }


def described(found: Mapping[str, Any]) -> str:
    """The machine in a sentence, and a warning if it was busy before we began."""
    words = ", ".join(f"{k} {v}" for k, v in found.items() if v is not None)
    busy = found["load"] is not None and found["load"] > 0.5
    warning = "\nThe machine is busy: the figures are provisional." if busy else ""
    return f"On {words}.{warning}\n"
