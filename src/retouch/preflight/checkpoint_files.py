"""The files of a checkpoint, looked at without loading them: are they there, and whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retouch.core.finding import Finding
from retouch.core.units import size_text

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes: what safetensors itself refuses to read beyond
CONVERT = (
    "Have them converted where they are trusted: load them with transformers and call "
    "`save_pretrained`, which writes safetensors; or take a revision that has them (--revision)."
)
AGAIN = "Download it again."


@dataclass(frozen=True)
class CheckpointFiles:
    """What a checkpoint's files hold.

    Attributes:
        files: how many safetensors files the weights are in.
        size: bytes of these files.
        numbers: how many numbers their tensors have in all; None where no header could be read.
        findings: what is wrong with them, or that nothing is.
    """

    files: int
    size: int
    numbers: int | None
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing about them would stop an edit."""
        return not any(finding.level == "error" for finding in self.findings)


class _Broken(Exception):
    """A file that cannot be read as safetensors; says in what way."""


def look_at_folder(folder: Path) -> CheckpointFiles:
    """Read the headers of a local checkpoint's files: an index, names, lengths; no weights.

    A safetensors file begins with the length of its header, 8 bytes, and the header says where each
    tensor ends: `8 + header + last end` is the length that a whole file has.
    """
    stops: list[Finding] = []
    try:
        present = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    except OSError as error:
        what = f"{folder} cannot be read: {error.strerror}."
        return CheckpointFiles(0, 0, None, (_stop(what, "Give reading rights."),))
    try:
        index = _index(folder) if INDEX in present else None
    except _Broken as problem:
        return CheckpointFiles(0, 0, None, (_stop(f"{INDEX} {problem}.", AGAIN),))
    names = sorted(set(index.values())) if index is not None else [ONE] * (ONE in present)
    if not names:
        return CheckpointFiles(0, 0, None, (_without(present),))
    missing = [name for name in names if name not in present]
    if missing:
        stops.append(_missing(missing, len(names)))
    numbers = 0
    for name in names:
        if name in missing:
            continue
        try:
            header = _header(folder / name)
            lost = [t for t, file in (index or {}).items() if file == name and t not in header]
            if lost:
                raise _Broken(f"lacks {_some(lost)}, which the index says is in it")
            numbers += sum(header.values())
        except _Broken as problem:
            stops.append(_stop(f"{name} {problem}.", AGAIN))
        except OSError as error:
            stops.append(_stop(f"{name} cannot be read: {error.strerror}.", "Give reading rights."))
    size = sum(present.get(name, 0) for name in names)
    fine = Finding("ok", "weights", f"{_files(len(names))}, {size_text(size)}, all whole.")
    return CheckpointFiles(len(names), size, None if stops else numbers, tuple(stops) or (fine,))


def look_at_listing(files: Mapping[str, int | None]) -> CheckpointFiles:
    """The same from the names and sizes of a repository's files: only what is there is known."""
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if ONE in files:
        weights = [ONE]
    elif INDEX in files:
        # `model-00002-of-00005.safetensors` says itself how many there should be.
        weights = [name for name in weights if name.startswith("model-")]
    if not weights or (ONE not in files and INDEX not in files):
        return CheckpointFiles(0, 0, None, (_without(files),))
    expected = {_of(name) for name in weights} - {None}
    total = max((number for number in expected if number), default=len(weights))
    size = sum(files[name] or 0 for name in weights)
    if total > len(weights):
        found: Finding = _missing([f"{total - len(weights)}"], total)
    else:
        found = Finding("ok", "weights", f"{_files(len(weights))}, {size_text(size)}, on the hub.")
    return CheckpointFiles(len(weights), size, None, (found,))


def _of(name: str) -> int | None:
    end = name.removesuffix(".safetensors").rpartition("-of-")[2]
    return int(end) if end.isdecimal() else None


def _index(folder: Path) -> dict[str, str]:
    """The index's file for each tensor."""
    try:
        found = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _Broken("cannot be read as an index") from None
    if not isinstance(found, dict) or not found:
        raise _Broken("names no tensors")
    return {str(tensor): str(file) for tensor, file in found.items()}


def _header(file: Path) -> dict[str, int]:
    """How many numbers each tensor of a file has, after its length was held against them."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(LFS))
        if start == LFS:
            raise _Broken("is a Git LFS pointer and holds no weights: run `git lfs pull`")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > LONGEST_HEADER:
            raise _Broken("is no safetensors file")
        opened.seek(8)
        raw = opened.read(length)
    if len(raw) < length:
        raise _Broken(f"is cut short: it ends within its header, after {size_text(size)}")
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = 8 + length + max((int(e["data_offsets"][1]) for e in header.values()), default=0)
        numbers = {str(name): math.prod(map(int, e["shape"])) for name, e in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _Broken("is no safetensors file: its header does not parse") from None
    if size < end:
        raise _Broken(f"is cut short: {size_text(size)} of {size_text(end)}")
    if size > end:
        raise _Broken(f"is {size_text(size - end)} longer than its header says")
    return numbers


def _without(names: Iterable[str]) -> Finding:
    """Why there are no weights to load."""
    names = set(names)
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if "adapter_config.json" in names and "config.json" not in names:
        return _stop("It is an adapter and no model.", "Name the model that it belongs to.")
    if others:
        return _stop(
            f"There is {_some(others)}, but neither {ONE} nor {INDEX}.",
            "transformers looks for these names alone: rename it, or write it anew.",
        )
    if pickled:
        return _stop(
            f"The weights are pickled ({_some(pickled)}), and a pickle runs what code it likes.",
            CONVERT,
        )
    return _stop("There are no weights.", f"Put {ONE}, or its shards and their index, beside it.")


def _missing(names: list[str], total: int) -> Finding:
    return _stop(f"The weights are not all there: missing {_some(names)}, of {total} files.", AGAIN)


def _stop(what: str, hint: str) -> Finding:
    return Finding("error", "weights", what, hint)


def _files(number: int) -> str:
    return f"{number} safetensors file{'s' if number > 1 else ''}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def sizes(listing: Iterable[Any]) -> Iterator[tuple[str, int | None]]:
    """Name and bytes of the files that the hub lists."""
    for file in listing:
        yield str(file.rfilename), file.size
