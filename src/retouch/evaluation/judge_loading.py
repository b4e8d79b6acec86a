"""Load a judge: a sequence classifier, a guard model, or a LoRA adapter of one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from retouch.core.config import Dtype, LoadConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.hub import cached_folder, list_hub_files
from retouch.core.model_names import is_gguf_name
from retouch.core.run_dir import ADAPTER_CONFIG
from retouch.core.serialization import parse_json
from retouch.evaluation.judge import BATCH_SIZE, AnswerJudge, Judge, LabelJudge, TextJudge
from retouch.evaluation.judge_formats import (
    JudgeFormat,
    LabelOutput,
    TextOutput,
    find_format,
    is_classifier,
    load_format,
)
from retouch.evaluation.judge_prompts import PromptEncoder
from retouch.models.editable_model import EditableModel, prepare_tokenizer
from retouch.models.load import find_device, find_dtype, find_source, load
from retouch.models.oom import is_out_of_memory
from retouch.models.weights import UNREADABLE, first_sentence

# What is read of an adapter on the hub: never weights in a pickle.
_ADAPTER_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
_LONGEST = 10**9  # the `model_max_length` of tokenizers without one is larger


def load_judge(
    name_or_path: str | Path,
    *,
    format: str | Path | None = None,
    label: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Judge:
    """Load a judge, from safetensors.

    Args:
        name_or_path: a hub id or a local folder: a sequence classifier, a causal language model, or
            a LoRA adapter of one, whose base model is loaded too.
        format: the name of a prompt format or a YAML file (default: the one that belongs to the
            model's hub id, or to the folder's name).
        label: for a sequence classifier: its label of refusals, or LABEL=harmful (default: found by
            the labels' names).
        revision: hub revision: branch, tag or commit.
        device: auto, cpu, cuda or cuda:N.
        dtype: dtype of the weights; auto is float32 on the CPU and bfloat16 on a GPU.
        trust_remote_code: run code that comes with the model.
        batch_size: the maximum number of prompts that run together.

    Raises:
        ConfigError: the format is unknown, wrong or not of this kind of model, or no label fits.
        ModelError: the model cannot be loaded.
    """
    if batch_size < 1:
        message = f"`batch_size` must be at least 1, got {batch_size}."
        raise ConfigError(message, code="judge-batch-size")
    name = str(name_or_path)
    config = _read_json(name, "config.json", revision)
    if not (config or is_gguf_name(name) or _read_json(name, ADAPTER_CONFIG, revision)):
        message = f"The judge {name!r} has no config.json that can be read."
        hint = "Give a local folder, or a hub id that this machine has access to."
        raise ModelError(message, hint, code="model-unreadable")
    form = find_format(name, config) if format is None else load_format(format)
    classifier = is_classifier(config)
    if classifier != isinstance(form.output, LabelOutput):
        kind = "a sequence classifier" if classifier else "no sequence classifier"
        message = f"The judge format {form.name} does not fit {name}, which is {kind}."
        hint = "Formats with the output `labels` are for sequence classifiers, and no others."
        raise ConfigError(message, hint, code="judge-format-mismatch")
    if label is not None and not classifier:
        message = f"`label` is for a sequence classifier, and {name} is none, got {label!r}."
        raise ConfigError(message, "Leave it out.", code="judge-label")
    options = LoadConfig(
        revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if isinstance(form.output, LabelOutput):
        return _load_classifier(name, form, form.output, label, options, batch_size)
    editable = _load_guard(name, options)
    new_tokens = form.output.max_new_tokens if isinstance(form.output, TextOutput) else 1
    longest = editable.max_length
    limit = None if longest is None else longest - new_tokens
    encoder = PromptEncoder(form, editable.tokenizer, limit)
    if isinstance(form.output, TextOutput):
        return TextJudge(editable, encoder, form.output, batch_size)
    return AnswerJudge(editable, encoder, form.output, batch_size)


def _load_classifier(
    name: str,
    form: JudgeFormat,
    output: LabelOutput,
    label: str | None,
    options: LoadConfig,
    batch_size: int,
) -> LabelJudge:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = find_device(options.device)
    given = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **given)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=find_dtype(options.dtype, device), use_safetensors=True, **given
        )
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        message = f"The judge {name!r} cannot be loaded: {first_sentence(error)}."
        hint = "Give a folder with config.json, a tokenizer and safetensors, or a hub id."
        raise ModelError(message, hint, code="model-unreadable") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # A decoder with a classification head finds the last token of a text by it.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False).eval().to(device)
    lengths = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    limit = min((one for one in lengths if one and one < _LONGEST), default=None)
    encoder = PromptEncoder(form, tokenizer, limit)
    return LabelJudge(name, model, encoder, output, label, batch_size)


def _load_guard(name: str, options: LoadConfig) -> EditableModel:
    """Load a causal language model, or an adapter with its base model."""
    adapter = _read_json(name, ADAPTER_CONFIG, options.revision)
    if not adapter or _read_json(name, "config.json", options.revision):
        return load(name, options)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        allowed = list(_ADAPTER_FILES)
        folder = Path(snapshot_download(name, revision=options.revision, allow_patterns=allowed))
    if not any(folder.glob("*.safetensors")):
        message = f"The adapter {name} has no weights in safetensors."
        raise ModelError(message, "Convert it, or give another judge.", code="model-unreadable")
    base = str(adapter.get("base_model_name_or_path") or "")
    editable = load(base, options.model_copy(update={"revision": None}), adapter=folder)
    if (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        editable.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        prepare_tokenizer(editable.tokenizer, name)
    editable.name = name
    return editable


def _files_on_hub(name: str, revision: str | None) -> Collection[str]:
    """The files of a hub model; none where the hub does not answer."""
    try:
        return list_hub_files(name, revision, raises=ModelError)
    except ModelError:
        return ()


def _read_json(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a folder or of a model on the hub; empty where there is none."""
    from huggingface_hub import hf_hub_download

    source = find_source(name, revision)
    try:
        if isinstance(source, Path):
            path = source / file
        elif file in _files_on_hub(source, revision):
            path = Path(hf_hub_download(source, file, revision=revision))
        elif folder := cached_folder(source, revision):
            path = folder / file
        else:
            return {}
        values = parse_json(read_text(path, MAX_CONFIG))
    except (OSError, ValueError):  # it is missing or broken
        values = {}
    return values if isinstance(values, dict) else {}
