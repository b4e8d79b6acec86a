"""Check that a checkpoint's files are present and complete, without loading them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retouch.core.finding import Finding
from retouch.core.units import size_text

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000  # bytes: the limit of the safetensors library
DOWNLOAD_AGAIN = "Download it again."


@dataclass(frozen=True)
class CheckpointFiles:
    """The weights of a checkpoint.

    Attributes:
        num_files: number of safetensors files.
        size: bytes of these files.
        num_parameters: elements of their tensors; None if no header was read.
        findings: the problems found, or that there are none.
    """

    num_files: int = 0
    size: int = 0
    num_parameters: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.level == "error" for finding in self.findings)


class _BrokenFile(Exception):
    """A file is not what its name says."""

    def __init__(self, problem: str, code: str = "weights-corrupt", hint: str = DOWNLOAD_AGAIN):
        super().__init__(problem)
        self.code, self.hint = code, hint

    def finding(self, name: str) -> Finding:
        return Finding("error", self.code, f"{name} {self}.", self.hint)


def check_folder(folder: Path) -> CheckpointFiles:
    """Check a local checkpoint by its index and the headers of its files; no weights are read.

    A safetensors file begins with the length of its header in 8 bytes, and the header gives the
    end of every tensor: the file must have `8 + header + last end` bytes.
    """
    try:
        present = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        index = _read_index(folder / INDEX) if INDEX in present else None
    except OSError as error:
        return CheckpointFiles(findings=(_unreadable(str(folder), error),))
    except _BrokenFile as error:
        return CheckpointFiles(findings=(error.finding(INDEX),))
    names = sorted(set(index.values())) if index is not None else [SINGLE] * (SINGLE in present)
    if not names:
        return CheckpointFiles(findings=(_no_weights(present),))
    missing = [name for name in names if name not in present]
    problems = [_incomplete(_first_few(missing), len(names))] if missing else []
    num_parameters = 0
    for name in names:
        if name in missing:
            continue
        try:
            tensors = _read_header(folder / name)
            lost = [key for key, file in (index or {}).items() if file == name]
            lost = [key for key in lost if key not in tensors]
            if lost:
                raise _BrokenFile(f"lacks {_first_few(lost)}, which the index assigns to it")
            num_parameters += sum(tensors.values())
        except _BrokenFile as error:
            problems.append(error.finding(name))
        except OSError as error:
            problems.append(_unreadable(name, error))
    size = sum(present.get(name, 0) for name in names)
    return CheckpointFiles(
        num_files=len(names),
        size=size,
        num_parameters=None if problems else num_parameters,
        findings=tuple(problems) or (_complete(len(names), size, "complete"),),
    )


def check_listing(files: Mapping[str, int | None]) -> CheckpointFiles:
    """Check a hub repository by the names and sizes of its files."""
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if SINGLE in files:
        weights = [SINGLE]
    elif INDEX in files:
        weights = [name for name in weights if name.startswith("model-")]
    else:
        weights = []
    if not weights:
        return CheckpointFiles(findings=(_no_weights(files),))
    expected = max((_total_of(name) for name in weights), default=0) or len(weights)
    size = sum(files[name] or 0 for name in weights)
    finding = _complete(len(weights), size, "on the hub")
    if expected > len(weights):
        finding = _incomplete(str(expected - len(weights)), expected)
    return CheckpointFiles(num_files=len(weights), size=size, findings=(finding,))


def _total_of(name: str) -> int:
    """The 5 in `model-00002-of-00005.safetensors`; 0 for other names."""
    total = name.removesuffix(".safetensors").rpartition("-of-")[2]
    return int(total) if total.isdecimal() else 0


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise _BrokenFile("is not a valid index") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _BrokenFile("lists no tensors")
    return {str(tensor): str(file) for tensor, file in weight_map.items()}


def _read_header(path: Path) -> dict[str, int]:
    """The number of elements of each tensor of a file, whose length is checked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            problem = "is a Git LFS pointer without weights"
            raise _BrokenFile(problem, "weights-lfs-pointer", "Run `git lfs pull`.")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > MAX_HEADER:
            raise _BrokenFile("is not a safetensors file")
        file.seek(8)
        raw = file.read(length)
    if len(raw) < length:
        problem = f"is truncated within its header, after {size_text(size)}"
        raise _BrokenFile(problem, "weights-truncated")
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
        elements = {str(name): math.prod(map(int, one["shape"])) for name, one in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _BrokenFile("is not a safetensors file: its header is invalid") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        problem = f"is truncated: {size_text(size)} of {size_text(expected)}"
        raise _BrokenFile(problem, "weights-truncated")
    if size > expected:
        raise _BrokenFile(f"is {size_text(size - expected)} longer than its header says")
    return elements


def _no_weights(names: Iterable[str]) -> Finding:
    """Why there are no weights to load."""
    names = set(names)
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if "adapter_config.json" in names and "config.json" not in names:
        return Finding(
            "error", "model-is-adapter", "This is an adapter, not a model.", "Give its base model."
        )
    if others:
        return Finding(
            "error",
            "weights-misnamed",
            f"There is {_first_few(others)}, but neither {SINGLE} nor {INDEX}.",
            "transformers reads only these names: rename the file, or save the model again.",
        )
    if pickled:
        return Finding(
            "error",
            "weights-pickled",
            f"The weights are pickled ({_first_few(pickled)}), and loading a pickle can run "
            "arbitrary code.",
            "If you trust them, load them with transformers and call `save_pretrained`, which "
            "writes safetensors; or set another `revision`.",
        )
    return Finding(
        "error",
        "weights-missing",
        "There are no weights.",
        f"Add {SINGLE}, or shards with {INDEX}.",
    )


def _incomplete(missing: str, total: int) -> Finding:
    message = f"The weights are incomplete: missing {missing}, of {total} files."
    return Finding("error", "weights-incomplete", message, "Download them again.")


def _complete(num_files: int, size: int, where: str) -> Finding:
    files = f"{num_files} safetensors file{'s' if num_files > 1 else ''}"
    return Finding("ok", "weights-complete", f"{files}, {size_text(size)}, {where}.")


def _unreadable(name: str, error: OSError) -> Finding:
    message = f"{name} cannot be read: {error.strerror}."
    return Finding("error", "weights-unreadable", message, "Grant read permission.")


def _first_few(names: list[str]) -> str:
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
