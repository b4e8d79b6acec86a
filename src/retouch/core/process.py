"""This process, for launchers and for `run.json`: its rank, library versions, machine and time."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("retouch", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def launched_processes() -> int:
    """The number of processes that a launcher (accelerate, torchrun) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """The rank of this process, from 0; only rank 0 writes files and prints."""
    return int(os.environ.get("RANK", "0"))


def describe_machine() -> dict[str, Any]:
    """Versions, hardware and the time, for `run.json`."""
    return {
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in LIBRARIES},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
