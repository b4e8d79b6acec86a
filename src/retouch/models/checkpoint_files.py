"""Check that a checkpoint's files are present and complete, without loading them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from retouch.core.errors import ModelError
from retouch.core.files import MAX_RECORD, read_text
from retouch.core.finding import ErrorsAsFindings, Finding, first_few
from retouch.core.model_names import is_gguf_name
from retouch.core.run_dir import ADAPTER_CONFIG
from retouch.core.serialization import parse_json
from retouch.core.units import size_text
from retouch.models.gguf_header import LFS_POINTER, GgufHeader

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class CheckpointFiles:
    """The weights of a checkpoint."""

    num_files: int = 0
    size: int = 0  # bytes
    num_parameters: int | None = None  # elements of the tensors; None unless all headers are valid
    findings: tuple[Finding, ...] = ()  # the problems, or that there are none


def check_folder(folder: Path) -> CheckpointFiles:
    """Check a local checkpoint by its index and the headers of its files; no weights are read."""
    findings: list[Finding] = []
    try:
        with ErrorsAsFindings(findings):
            return _check_folder(folder)
    except OSError as error:
        message = f"{error.filename} cannot be read: {error.strerror}."
        findings.append(Finding("error", "weights-unreadable", message, "Grant read permission."))
    return CheckpointFiles(findings=tuple(findings))


def _check_folder(folder: Path) -> CheckpointFiles:
    present = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    tensors: Mapping[str, Collection[str]] = {SINGLE: ()}
    if INDEX in present:
        tensors = _read_index(folder / INDEX)
    elif SINGLE not in present:
        raise _no_weights(present)
    if ADAPTER_CONFIG in present:  # transformers would put it on the model
        message = f"There is an adapter beside the weights ({ADAPTER_CONFIG})."
        hint = "Move it to a folder of its own, and give that as the adapter."
        raise ModelError(message, hint, code="model-with-adapter")
    findings: list[Finding] = []
    if missing := sorted(tensors.keys() - present.keys()):
        findings.append(_incomplete(first_few(missing), len(tensors)))
    num_parameters = 0
    for name in sorted(tensors.keys() & present.keys()):
        with ErrorsAsFindings(findings):
            num_parameters += _check_file(folder / name, tensors[name])
    size = sum(present.get(name, 0) for name in tensors)
    if findings:
        return CheckpointFiles(len(tensors), size, None, tuple(findings))
    complete = _complete(len(tensors), size, "complete")
    return CheckpointFiles(len(tensors), size, num_parameters, (complete,))


def require_complete(folder: Path) -> None:
    """Check a local checkpoint before it is loaded.

    Raises:
        ModelError: the first problem of its files.
    """
    for finding in check_folder(folder).findings:
        if finding.level == "error":
            raise ModelError(f"{folder}: {finding.message}", finding.hint, code=finding.code)


def check_listing(files: Mapping[str, int | None]) -> CheckpointFiles:
    """Check a hub repository by the names and sizes of its files.

    Raises:
        ModelError: there are no weights that can be loaded.
    """
    weights = [SINGLE] if SINGLE in files else []
    if INDEX in files and not weights:
        names = (name for name in files if "/" not in name)
        weights = [n for n in names if n.startswith("model-") and n.endswith(".safetensors")]
    if not weights:
        raise _no_weights(files)
    # The 5 in `model-00002-of-00005.safetensors`.
    total = weights[0].removesuffix(".safetensors").rpartition("-of-")[2]
    expected = int(total) if total.isdecimal() else len(weights)
    size = sum(files[name] or 0 for name in weights)
    finding = _complete(len(weights), size, "on the hub")
    if expected > len(weights):
        finding = _incomplete(str(expected - len(weights)), expected)
    return CheckpointFiles(len(weights), size, findings=(finding,))


def check_gguf(header: GgufHeader) -> CheckpointFiles:
    """The weights of a GGUF file, whose header shows that it is complete."""
    message = f"A GGUF file ({header.architecture[:40]}), {size_text(header.size)}, complete."
    finding = Finding("ok", "weights-complete", message)
    return CheckpointFiles(1, header.size, header.num_parameters, (finding,))


def _broken(
    path: Path, problem: str, code: str = "weights-corrupt", hint: str = "Download it again."
) -> ModelError:
    return ModelError(f"{path.name} {problem}.", hint, code=code)


def _read_index(path: Path) -> dict[str, list[str]]:
    """The tensors of each file."""
    tensors: dict[str, list[str]] = {}
    try:
        for tensor, file in parse_json(read_text(path, MAX_RECORD))["weight_map"].items():
            tensors.setdefault(str(file), []).append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, "is not a valid index") from None
    if not tensors:
        raise _broken(path, "lists no tensors")
    return tensors


def _check_file(path: Path, tensors: Collection[str]) -> int:
    """The number of elements of a file, which must be complete and have these tensors."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            problem = "is a Git LFS pointer without weights"
            raise _broken(path, problem, "weights-lfs-pointer", "Run `git lfs pull`.")
    try:
        with safe_open(path, framework="numpy") as opened:  # maps the file, reads the header
            names = opened.keys()
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
    except SafetensorError as error:
        if re.search("incomplete|header ?length", str(error), re.IGNORECASE):
            problem = f"has another length, {size_text(path.stat().st_size)}, than its header says"
            raise _broken(path, problem, "weights-truncated") from None
        raise _broken(path, f"is not a safetensors file: {error}") from None
    if lost := [name for name in tensors if name not in shapes]:
        raise _broken(path, f"lacks {first_few(lost)}, which the index assigns to it")
    return sum(math.prod(shape) for shape in shapes.values())


def _no_weights(names: Collection[str]) -> ModelError:
    """The reason why there are no weights to load."""
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    others = sorted(name for name in names if name.endswith(".safetensors"))
    code, message = "weights-missing", "There are no weights."
    hint = f"Add {SINGLE}, or shards with {INDEX}."
    if ADAPTER_CONFIG in names and "config.json" not in names:
        code, message = "model-is-adapter", "This is an adapter, not a model."
        hint = "Give its base model."
    elif gguf := sorted(filter(is_gguf_name, names)):
        code, message = "weights-gguf", f"The weights are in the GGUF format ({first_few(gguf)})."
        hint = "Give the file as the model, in place of its folder."
    elif others:
        code = "weights-misnamed"
        message = f"There is {first_few(others)}, but neither {SINGLE} nor {INDEX}."
        hint = "transformers reads only these names: rename the file, or save the model again."
    elif pickled:
        code = "weights-pickled"
        message = (
            f"The weights are pickled ({first_few(pickled)}), and loading a pickle can run "
            "arbitrary code."
        )
        hint = (
            "If you trust them, load them with transformers and call `save_pretrained`, which "
            "writes safetensors; or set another `revision`."
        )
    return ModelError(message, hint, code=code)


def _incomplete(missing: str, total: int) -> Finding:
    message = f"The weights are incomplete: missing {missing}, of {total} files."
    return Finding("error", "weights-incomplete", message, "Download them again.")


def _complete(num_files: int, size: int, where: str) -> Finding:
    files = f"{num_files} safetensors file{'s' if num_files > 1 else ''}"
    return Finding("ok", "weights-complete", f"{files}, {size_text(size)}, {where}.")
