"""Load a model's architecture, tokenizer and list of files, but not its weights.

The blocks are built on the meta device, where tensors have shapes and no values: a model of
seventy billion parameters takes a second and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retouch.core.chat_template import set_template_settings
from retouch.core.config import LoadConfig
from retouch.core.errors import ModelError
from retouch.core.finding import ErrorsAsFindings, Finding
from retouch.core.hub import cached_folder, list_hub_files
from retouch.models.checkpoint_files import (
    CheckpointFiles,
    check_folder,
    check_gguf,
    check_listing,
)
from retouch.models.editable_model import check_tokenizer, prepare_tokenizer
from retouch.models.gguf import copies_dir, find_copy, gguf_source, read_tokenizer
from retouch.models.gguf_header import read_header
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.load import find_source, install_hint, set_chat_template
from retouch.models.weights import UNREADABLE, build_skeleton, first_sentence, remote_code
from retouch.preflight.findings import check_disk


@dataclass
class ModelSkeleton:
    """A model without its weights."""

    model: Any = None  # the architecture on the meta device; None if it could not be built
    layout: ModelLayout | None = None  # None if the blocks were not found
    tokenizer: Any = None  # None if it could not be loaded
    files: CheckpointFiles = field(default_factory=CheckpointFiles)
    local: bool = False  # whether the files are on this machine
    quantization: str = ""  # the checkpoint's, such as `gptq, 4 bit`; empty without one
    findings: list[Finding] = field(default_factory=list)


def load_skeleton(name: str, load: LoadConfig, dtype: torch.dtype) -> ModelSkeleton:
    """Load what `models.load.load` would load, without the weights.

    A GGUF file that was converted before is its safetensors copy; another one is read in place.
    """
    skeleton = ModelSkeleton()
    findings = skeleton.findings
    options = {"revision": load.revision, "trust_remote_code": load.trust_remote_code}
    with ErrorsAsFindings(findings), ExitStack() as stack:
        source = find_source(name, load.revision)
        if isinstance(source, str):
            path, skeleton.files = _find_on_hub(source, load.revision, install_hint(name))
            skeleton.local = path != source
        elif source.is_dir():
            path, skeleton.files, skeleton.local = str(source), check_folder(source), True
        else:
            header = read_header(source)
            skeleton.local, copy = True, find_copy(source, dtype)
            skeleton.files = check_gguf(header) if copy is None else check_folder(copy)
            path = str(copy)
            if copy is None:
                size = header.num_parameters * dtype.itemsize
                hint = "Free disk space, or set RETOUCH_CACHE to a folder on a larger disk."
                message = "of weights would be converted to safetensors in"
                findings += check_disk(copies_dir(), size, message, hint, "weights-conversion")
                path, gguf_options = stack.enter_context(gguf_source(source, header))
                options |= gguf_options
        _build(skeleton, path, load, dtype, options)
    return skeleton


def _build(
    skeleton: ModelSkeleton,
    path: str,
    load: LoadConfig,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> None:
    """Read the architecture and the tokenizer, and add the findings about them."""
    from transformers import AutoTokenizer

    findings = skeleton.findings
    hint = (
        "Give the folder of a causal language model that transformers supports, with its "
        "config.json, or upgrade transformers."
    )
    with _reading("architecture", hint, findings):
        model = build_skeleton(path, dtype, options)
        skeleton.model = model.eval().requires_grad_(False)
        _check_quantization(skeleton)
        skeleton.layout = find_layout(model)
    findings += skeleton.files.findings
    _check_num_parameters(skeleton)
    hint = "Add the tokenizer's files to the folder, or install the missing library."
    with _reading("tokenizer", hint, findings):
        if "gguf_file" in options and skeleton.model is not None:
            vocab_size = skeleton.model.config.get_text_config().vocab_size
            tokenizer = read_tokenizer(path, options, vocab_size)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
        prepare_tokenizer(tokenizer, path)
        set_template_settings(tokenizer, load.chat_template_kwargs, load.chat_template_time)
        if load.chat_template is not None:
            set_chat_template(tokenizer, Path(load.chat_template))
        skeleton.tokenizer = tokenizer
    if skeleton.tokenizer is not None:
        findings += _check_tokenizer(skeleton.tokenizer, skeleton.model)


def _find_on_hub(name: str, revision: str | None, install: str) -> tuple[str, CheckpointFiles]:
    """The cached folder of a hub model if it is complete, else its id and the hub's file list.

    Raises:
        ModelError: the hub has no such model or cannot be reached; `install` is added to the hint.
    """
    folder = cached_folder(name, revision)
    if folder is not None:
        files = check_folder(folder)
        if files.num_parameters is not None:
            return str(folder), files
    listed = list_hub_files(name, revision, raises=ModelError, hint=install)
    return name, check_listing(listed)


@contextmanager
def _reading(part: str, hint: str, findings: list[Finding]) -> Iterator[None]:
    """Add an error that is raised while a part of the model is read to the findings."""
    with ErrorsAsFindings(findings):
        try:
            yield
        except UNREADABLE as error:
            code = f"{part}-unreadable"
            message = f"The {part} cannot be read: {first_sentence(error)}."
            raise remote_code(error) or ModelError(message, hint, code=code) from None


def _check_quantization(skeleton: ModelSkeleton) -> None:
    """Name the checkpoint's quantisation and check that this machine supports it."""
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = getattr(skeleton.model.config, "quantization_config", None)
    if not settings:
        return
    loaded_in = next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)
    bits = settings.get("bits", loaded_in)
    method = str(settings.get("quant_method", "bitsandbytes"))
    skeleton.quantization = method + (f", {bits} bit" if bits else "")
    message = f"The weights are quantised ({skeleton.quantization})"
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except UNREADABLE as error:
        message += f", and this machine cannot load them: {first_sentence(error)}."
        hint = "Install what is missing, or give an unquantised checkpoint."
        finding = Finding("error", "quantization-unsupported", message, hint)
    else:
        message += "; which layers can be adapted is known after loading."
        finding = Finding("warning", "checkpoint-quantized", message)
    skeleton.findings.append(finding)


def _check_num_parameters(skeleton: ModelSkeleton) -> None:
    """Compare the number of parameters in the files with the architecture's."""
    found = skeleton.files.num_parameters
    if skeleton.model is None or skeleton.quantization or found is None:
        return
    expected = sum(p.numel() for p in skeleton.model.parameters())
    if found < 0.999 * expected:
        message = (
            f"The files have {found:,} parameters, the architecture has {expected:,}: the missing "
            "ones would be initialised at random."
        )
        hint = "Check that config.json and the weights are of the same model."
        skeleton.findings.append(Finding("error", "weights-mismatch", message, hint))


def _check_tokenizer(tokenizer: Any, model: Any) -> list[Finding]:
    findings: list[Finding] = []
    with ErrorsAsFindings(findings):
        check_tokenizer(tokenizer, model)
    if not getattr(tokenizer, "chat_template", None):
        message = "There is no chat template: prompts are written as `User: ...`, `Assistant:`."
        hint = "Edit the chat model, if there is one, or set `chat_template`."
        findings.append(Finding("warning", "chat-template-missing", message, hint))
    is_end = tokenizer.pad_token_id == tokenizer.eos_token_id
    padding = "the end token as padding" if is_end else "a padding token"
    message = f"{len(tokenizer):,} tokens, a chat template and {padding}."
    return findings or [Finding("ok", "tokenizer-complete", message)]
