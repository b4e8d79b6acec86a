"""Normalizers of memory and of files, read and written: `24GiB`, `512MiB`, `8GB`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retouch.core.errors import ConfigError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
SHOWN = ("KiB", "MiB", "GiB", "TiB")


def parse_size(text: str) -> int:
    """The bytes that a size names: a number and a unit, upper or lower case, with or without space.

    KB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB powers of 1024; without a unit the
    number counts bytes. Fractions of a byte are cut off.

    Raises:
        ConfigError: the text is no size, or no more than nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ConfigError(f"{text!r} is no size.", "Write it like 24GiB, 512MiB or 8GB.")
    whole, _, part = found[1].partition(".")
    # In whole numbers, since 0.1 GB as a float is not a hundred million bytes for sure.
    size: int = (int(whole + part) * unit) // 10 ** len(part)
    if size < 1:
        raise ConfigError(f"{text!r} is no size: it is nothing.", "Write it like 24GiB or 512MiB.")
    return size


def size_text(n: int) -> str:
    """A number of bytes for people, in powers of 1024: `512 B`, `1.5 GiB`, `131 GiB`."""
    if n < 1024:
        return f"{n} B"
    value = float(n)
    for unit in SHOWN:
        value /= 1024
        # Rounded first, so that it never says 1024 MiB.
        if round(value) < 1024 or unit == SHOWN[-1]:
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


TIME_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def time_text(seconds: float) -> str:
    """Seconds for people: an estimate needs no more than two figures."""
    for size, unit in TIME_UNITS:
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def layers_text(layers: Sequence[int]) -> str:
    """Layer numbers for people: `layer 3`, `layers 2-5`, `layers 1, 3, 5`."""
    numbers = list(layers)
    contiguous = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    named = f"{numbers[0]}-{numbers[-1]}" if contiguous else ", ".join(map(str, numbers))
    return f"layer{'s' if len(numbers) > 1 else ''} {named}"
