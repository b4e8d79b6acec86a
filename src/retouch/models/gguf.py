"""Models in GGUF files: checked, dequantised once, and kept as a safetensors copy.

GGUF is the file format of llama.cpp: metadata, tokenizer and quantised weights in one file.
transformers reads the architectures that it knows. A quantised copy could not be trained or saved,
and reading takes some 15 seconds for 135M parameters, so the dequantised model is written once to
the cache folder, `models/NAME-HASH-DTYPE`, and loaded from there.

A GGUF file is untrusted input. Its header is checked before any library reads it, nothing in it
names a file that is written, and its chat template runs only in the sandbox of transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from retouch.core.atomic import atomic_folder, atomic_write
from retouch.core.cache import cache_dir
from retouch.core.errors import ModelError, RunError
from retouch.core.files import sha256
from retouch.core.serialization import parse_json, to_json
from retouch.core.types import OnEvent, StageEvent, ignore_event
from retouch.core.units import size_text
from retouch.models.gguf_header import GgufHeader, read_header
from retouch.models.oom import is_out_of_memory
from retouch.models.weights import UNREADABLE, call_auto_class, first_sentence

RECORD = "gguf.json"  # in a copy: the hash of the GGUF file, and those of the copy's files
RECORD_VERSION = 1

# What the readers raise for a file that is not what its header promises, beside `UNREADABLE`.
BROKEN = (*UNREADABLE, struct.error, LookupError, AssertionError, EOFError)


@contextmanager
def gguf_source(file: Path, header: GgufHeader) -> Iterator[tuple[str, dict[str, Any]]]:
    """Provide the path and the options with which transformers reads a GGUF file.

    The path is an empty folder: from the file's own folder transformers would read a tokenizer
    configuration and other files of models beside it. The option `gguf_file` is an absolute path,
    since one that exists in the working directory takes precedence. Errors of the readers inside
    the context become one that names the file.

    Raises:
        ModelError: transformers does not support the architecture, or cannot read the file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="retouch-gguf-") as empty:
            yield empty, {"gguf_file": str(file.resolve())}
    except BROKEN as error:
        if is_out_of_memory(error):
            raise
        reason = first_sentence(error)
        message = f"{file} cannot be loaded: {reason}."
        hint, code = "Download it again, or convert the model anew.", "model-unreadable"
        if re.search(r"not supported|unrecognized|unknown gguf model_type", reason, re.IGNORECASE):
            architecture = header.architecture[:40]
            message = f"transformers cannot read the architecture {architecture!r} of {file}."
            hint = "Upgrade transformers, or give the model in safetensors."
            code = "architecture-unsupported"
        raise ModelError(message, hint, code=code) from None


def local_copy(file: Path, dtype: torch.dtype, on_event: OnEvent = ignore_event) -> Path:
    """The folder of a GGUF file's safetensors copy, which is made if it is missing or broken.

    Args:
        file: the GGUF file.
        dtype: the dtype that the model is loaded in. A float32 copy serves for all, and a new copy
            has this dtype: rounding while converting equals rounding while loading.
        on_event: receives a message before a conversion.

    Raises:
        ModelError: the file cannot be read or converted, or the copy cannot be written.
    """
    header = read_header(file)
    digest = file_digest(file)
    folders = {one: copy_folder(file, digest, one) for one in (torch.float32, dtype)}
    for folder in folders.values():
        if folder.exists() and not find_damage(folder, digest):
            return folder
    folder = folders[dtype]
    # Parallel processes wait for the first, then use its copy.
    with _copy_errors(folder), _locked(folder):
        damage = find_damage(folder, digest) if folder.exists() else ""
        if folder.exists() and not damage:
            return folder
        if damage:
            on_event(StageEvent("load", f"the copy of {file.name} is unusable: {damage}"))
        detail = (
            f"converting {file.name} ({header.architecture[:40]}, {size_text(header.size)}) to "
            f"safetensors in {folder}, once"
        )
        on_event(StageEvent("load", detail))
        _check_free_space(file, folder, header.num_parameters * dtype.itemsize)
        with gguf_source(file, header) as (path, options):
            tokenizer, model = _read(file, path, options, dtype)
        with atomic_folder(folder) as staged:
            model.save_pretrained(str(staged))
            tokenizer.save_pretrained(str(staged))
            atomic_write(staged / RECORD, to_json(_describe(staged, file, digest, dtype)))
    return folder


def copy_folder(file: Path, digest: str, dtype: torch.dtype) -> Path:
    """Where the copy of a GGUF file is, or would be."""
    stem = re.sub(r"[^\w.-]+", "_", file.stem).strip("._-")[:60] or "model"
    name = f"{stem}-{digest[:16]}-{str(dtype).removeprefix('torch.')}"
    return copies_dir() / name


def copies_dir() -> Path:
    """The folder of all copies."""
    return cache_dir() / "models"


def find_copy(file: Path, dtype: torch.dtype) -> Path | None:
    """The folder of the copy that `local_copy` would use, unchecked; None if there is none.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = file_digest(file)
    folders = (copy_folder(file, digest, one) for one in (torch.float32, dtype))
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def file_digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; remembered as long as size and time stay the same.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        path = file.resolve()
        status = path.stat()
        known = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        memo = copies_dir() / "hashes" / f"{name}.json"
        with suppress(OSError, ValueError, AttributeError):
            recorded = parse_json(memo.read_text("utf-8"))
            digest = recorded.pop("sha256", None)
            if recorded == known and isinstance(digest, str) and len(digest) == 64:
                return digest
        digest = sha256(path)
    except OSError as error:
        message = f"The file {file} cannot be read: {error.strerror or error}."
        hint = "Check its path and its permissions."
        raise ModelError(message, hint, code="model-unreadable") from None
    with suppress(RunError, UnicodeError):  # without a memo, the file is hashed again next time
        atomic_write(memo, to_json({**known, "sha256": digest}))
    return digest


def find_damage(folder: Path, digest: str) -> str:
    """How a copy differs from the one that was written; empty if it is complete and unchanged.

    Args:
        folder: the copy.
        digest: the SHA-256 of the GGUF file.
    """
    try:
        record = parse_json((folder / RECORD).read_text("utf-8"))
        if record["version"] != RECORD_VERSION or record["sha256"] != digest:
            return "it is of another file or another version of Retouch"
        expected = dict(record["files"])
        # A file more is a change too: transformers would load an adapter that lies in the folder.
        found = {path.name for path in folder.iterdir()} - {RECORD}
        if changed := sorted(found ^ expected.keys()):
            return f"{changed[0]} is {'unknown' if changed[0] in found else 'missing'}"
        for name in sorted(expected):
            if sha256(folder / name) != expected[name]:
                return f"{name} has changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD} is invalid"
    return ""


def _describe(folder: Path, file: Path, digest: str, dtype: torch.dtype) -> dict[str, Any]:
    """The record of a copy."""
    return {
        "version": RECORD_VERSION,
        "gguf": file.name,
        "sha256": digest,
        "dtype": str(dtype).removeprefix("torch."),
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }


def _read(file: Path, path: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """The tokenizer and the dequantised model of a GGUF file.

    Raises:
        ModelError: the model is not a decoder of text, or weights are missing.
    """
    import transformers

    # Read once and passed on, since it takes seconds.
    config = transformers.AutoConfig.from_pretrained(path, **options)
    tokenizer = read_tokenizer(path, options, config.get_text_config().vocab_size)
    if not isinstance(tokenizer.chat_template, str | None):
        # Several templates would be written to files with names from the GGUF file.
        message = f"The chat template of {file} is not a text."
        raise ModelError(message, "Convert the model anew.", code="gguf-invalid")
    options = {**options, "config": config, "dtype": dtype, "output_loading_info": True}
    # Without it, current versions keep the weights quantised; earlier ones have no such class.
    if (gguf_config := getattr(transformers, "GgufConfig", None)) is not None:
        options["quantization_config"] = gguf_config(dequantize=True)
    model, info = call_auto_class(str(file), "from_pretrained", path, **options)
    if missing := sorted(info["missing_keys"]):
        message = f"{file} lacks {len(missing)} of the model's weights, such as {missing[0]}."
        raise ModelError(message, "Download it again.", code="weights-missing")
    return tokenizer, model


def read_tokenizer(path: str, options: dict[str, Any], vocab_size: int) -> Any:
    """The tokenizer of a GGUF file.

    Args:
        path: the path of `gguf_source`.
        options: its options.
        vocab_size: the number of tokens that the model embeds. Tokens beyond it are not in the
            file: transformers adds the default `<|endoftext|>` of GPT-2 to any byte-level
            vocabulary, and a text with it would be out of the model's range.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if len(tokenizer) > vocab_size:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = [one for one in state["added_tokens"] if one["id"] < vocab_size]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def _check_free_space(file: Path, folder: Path, size: int) -> None:
    """Raise if a copy of `size` bytes does not fit; the folder's parent exists."""
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        message = f"The copy of {file.name} needs {size_text(size)} in {folder.parent}, "
        message += f"{size_text(free)} available."
        hint = "Free disk space, or set RETOUCH_CACHE to a folder on a larger disk."
        raise ModelError(message, hint, code="disk-full")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a copy, which is a file beside it, inside the context."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_name(f".{folder.name}.lock")):
        yield


@contextmanager
def _copy_errors(folder: Path) -> Iterator[None]:
    """Report that the cache folder cannot be written.

    Raises:
        ModelError: it cannot.
    """
    try:
        yield
    except (OSError, RunError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", str(error))
        message = f"The copy in {folder.parent} cannot be written: {str(reason).rstrip('.')}."
        hint = "Free disk space there, or set RETOUCH_CACHE to another folder."
        raise ModelError(message, hint, code="cache-unwritable") from error
