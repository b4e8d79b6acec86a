"""Rank and number of processes, as a launcher (accelerate, torchrun) sets them; without torch."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """The number of processes that were launched together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """The rank of this process, from 0; only rank 0 writes files and prints."""
    return int(os.environ.get("RANK", "0"))
