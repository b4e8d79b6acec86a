"""The header of a GGUF file, read with bounds before any library reads the file.

The file is untrusted: every count and length in it is checked against the size of the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retouch.core.errors import ModelError
from retouch.core.units import size_text

MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"
VERSIONS = (2, 3)  # version 1 was replaced within months, in 2023

# The value types of the metadata, by their codes, as formats of `struct`; then the other two.
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufHeader:
    """What the header of a GGUF file says.

    Attributes:
        architecture: the architecture's name in llama.cpp, such as `llama`.
        num_parameters: the number of elements of all tensors.
        size: the size of the file, in bytes.
    """

    architecture: str
    num_parameters: int
    size: int


def read_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that the file has all tensors; reads no weights.

    Raises:
        ModelError: the file does not exist or cannot be read, is not a GGUF file, is incomplete, is
            one part of several, or the package gguf is missing.
    """
    try:
        with file.open("rb") as opened:
            start, size = opened.read(len(LFS_POINTER)), file.stat().st_size
            _check_start(file, start)
            require_gguf(file)
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse_header(file, _Cursor(data), size)
    except OSError as error:
        code = "model-not-found" if isinstance(error, FileNotFoundError) else "model-unreadable"
        message = f"The file {file} cannot be read: {error.strerror or error}."
        raise ModelError(message, "Check its path and its permissions.", code=code) from None
    except struct.error:
        raise _truncated(file, "its header is incomplete") from None


def _check_start(file: Path, start: bytes) -> None:
    """Raise if the first bytes are not those of a GGUF file."""
    if start.startswith(MAGIC):
        return
    message, code = f"{file} is not a GGUF file.", "gguf-invalid"
    hint = "Give a file in the GGUF format, or the folder of a model in safetensors."
    if start == LFS_POINTER:
        message, code = f"{file} is a Git LFS pointer without weights.", "weights-lfs-pointer"
        hint = "Run `git lfs pull`."
    raise ModelError(message, hint, code=code)


def require_gguf(file: Path) -> None:
    """Raise if the package that transformers reads GGUF files with is not installed.

    Raises:
        ModelError: it is not.
    """
    if find_spec("gguf") is None:
        message = f"Reading {file.name} needs the package gguf, which is not installed."
        raise ModelError(message, "pip install 'retouch[gguf]'", code="library-missing")


class _Cursor:
    """Reads little-endian values one after the other; past the end it raises `struct.error`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise struct.error

    def skip_text(self) -> None:
        self.skip(self.number("Q"))

    def text(self) -> str:
        length = self.number("Q")
        start = self.position
        self.skip(length)
        return self.data[start : self.position].decode("utf-8", "replace")

    def value(self) -> Any:
        """A value of the metadata; None for an array, which is skipped.

        Raises:
            ValueError: its type does not exist.
        """
        kind = self.number("I")
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
        elif kind == STRING:
            for _ in range(count):
                self.skip_text()
        else:
            raise ValueError(f"an array of the unsupported type {kind}")
        return None


def _parse_header(file: Path, cursor: _Cursor, size: int) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES

    block_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    cursor.skip(len(MAGIC))
    version, num_tensors, num_values = (cursor.number(code) for code in "IQQ")
    if version not in VERSIONS:
        message = f"{file} has version {version} of the GGUF format; 2 and 3 are supported."
        raise ModelError(message, "Convert the model with a newer llama.cpp.", code="gguf-invalid")
    try:
        values = {}
        for _ in range(num_values):
            key = cursor.text()
            values[key] = cursor.value()
        num_parameters = end = 0
        for _ in range(num_tensors):
            name, num_dimensions = cursor.text(), cursor.number("I")
            if num_dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {num_dimensions} dimensions, {name[:40]!r}")
            count = math.prod(cursor.number("Q") for _ in range(num_dimensions))
            kind, offset = cursor.number("I"), cursor.number("Q")
            if kind not in block_sizes:
                raise ValueError(f"a tensor of the unknown type {kind}, {name[:40]!r}")
            block, block_bytes = block_sizes[kind]
            num_parameters += count
            end = max(end, offset + -(-count // block) * block_bytes)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"an alignment of {alignment!r}")
    except ValueError as error:
        message = f"{file} is not a valid GGUF file: it has {error}."
        raise ModelError(message, "Download it again.", code="gguf-invalid") from None
    if isinstance(parts := values.get("split.count"), int) and parts > 1:
        message = f"{file} is one of the {parts} parts of a model."
        hint = "Join them with `llama-gguf-split --merge` of llama.cpp."
        raise ModelError(message, hint, code="gguf-split")
    needed = -(-cursor.position // alignment) * alignment + end
    if size < needed:
        problem = f"it has {size_text(size)} of at least {size_text(needed)}"
        raise _truncated(file, problem)
    return GgufHeader(str(values.get("general.architecture", "unknown")), num_parameters, size)


def _truncated(file: Path, problem: str) -> ModelError:
    message = f"{file} is truncated: {problem}."
    return ModelError(message, "Download it again.", code="gguf-truncated")
