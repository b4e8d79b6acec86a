"""Parse and format sizes in bytes (`24GiB`, `8GB`), durations and layer numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retouch.core.errors import ConfigError

UNITS = {"": 1, "B": 1}
for _power, _prefix in enumerate("KMGT", start=1):
    UNITS |= {f"{_prefix}B": 1000**_power, f"{_prefix}IB": 1024**_power}
BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB")


def parse_size(text: str) -> int:
    """Parse a size, a number and a unit, as bytes.

    KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB are powers of 1024; a number without
    a unit counts bytes. Case and spaces do not matter, and fractions of a byte are dropped.

    Raises:
        ConfigError: the text is not a size, or is less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    size = 0
    if found and found[2].upper() in UNITS:
        # Integer arithmetic, since 0.1 GB in floating point may not be exactly 10^8 bytes.
        whole, _, decimals = found[1].partition(".")
        size = int(whole + decimals) * UNITS[found[2].upper()] // 10 ** len(decimals)
    if size < 1:
        message = f"{text!r} is not a size of at least one byte."
        raise ConfigError(message, "Write it like 24GiB, 512MiB or 8GB.", code="size-invalid")
    return size


def size_text(n: int) -> str:
    """Format a number of bytes in powers of 1024: `512 B`, `1.5 GiB`, `131 GiB`."""
    if n < 1024:
        return f"{n} B"
    value = float(n)
    for unit in BINARY_UNITS:
        value /= 1024
        # Rounded before the comparison, so that the result is never 1024 MiB.
        if round(value) < 1024 or unit == BINARY_UNITS[-1]:
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


TIME_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def time_text(seconds: float) -> str:
    """Format seconds with two significant digits, as an estimate: `1.5 s`, `12 min`."""
    for size, unit in TIME_UNITS:
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def layers_text(layers: Sequence[int]) -> str:
    """Format layer numbers: `layer 3`, `layers 2-5`, `layers 1, 3, 5`."""
    numbers = list(layers)
    contiguous = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    listed = f"{numbers[0]}-{numbers[-1]}" if contiguous else ", ".join(map(str, numbers))
    return f"layer{'s' if len(numbers) > 1 else ''} {listed}"
