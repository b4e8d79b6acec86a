"""Which of the processes this is, where a launcher (accelerate, torchrun) has started several."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """How many processes were started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """The number of this process, from 0; the first one writes and speaks for all."""
    return int(os.environ.get("RANK", "0"))
