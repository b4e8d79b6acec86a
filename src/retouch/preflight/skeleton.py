"""A model's architecture without its weights, its tokenizer, its files: what loading would meet.

The blocks are built on the meta device, where tensors have shapes and no numbers: a model of
seventy billion parameters takes a second and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retouch.core.errors import ConfigError, ModelError
from retouch.core.finding import Finding
from retouch.models.chat_template import set_chat_template
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.load import POCKET
from retouch.models.weights import UNREADABLE, first_sentence, outline
from retouch.preflight.checkpoint_files import (
    CheckpointFiles,
    look_at_folder,
    look_at_listing,
    sizes,
)

NOWHERE = CheckpointFiles(0, 0, None, ())
TIMEOUT = 10.0  # seconds that the hub is waited for


@dataclass(frozen=True)
class ModelSkeleton:
    """What is known of a model before its weights are editable.

    Attributes:
        name: what the user called it.
        model: the architecture on the meta device; None where it could not be built.
        layout: where its blocks are; None where they were not found.
        tokenizer: None where it does not load.
        shards: what its files hold.
        local: the folder of its files; None where they would be downloaded.
        quantized: how the checkpoint is quantised, such as `gptq, 4 bit`; empty if it is not.
        findings: in the order in which things were looked at.
    """

    name: str
    model: Any
    layout: ModelLayout | None
    tokenizer: Any
    shards: CheckpointFiles
    local: Path | None
    quantized: str
    findings: tuple[Finding, ...]


def load_skeleton(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    dtype: torch.dtype,
) -> ModelSkeleton:
    """Look at `pocket`, a local folder or a hub id as `load` would, and load no weights."""
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    local = POCKET if name == "pocket" else Path(name) if Path(name).is_dir() else None
    if local is None and not _like_an_id(name):
        what = f"There is no folder {name}."
        stop = Finding(
            "error", "model", what, "Give `pocket`, a folder with config.json, a hub id."
        )
        return ModelSkeleton(name, None, None, None, NOWHERE, None, "", (stop,))
    local, shards = (local, look_at_folder(local)) if local else _on_the_hub(name, revision)
    findings = list(shards.findings)
    if local is None and not shards.files:
        return ModelSkeleton(name, None, None, None, shards, None, "", tuple(findings))
    path = str(local or name)
    model, quantized, found = _architecture(path, options, dtype)
    findings = [*found, *findings]
    layout = None
    if model is not None:
        try:
            layout = find_layout(model)
        except ModelError as error:
            findings.append(Finding("error", "blocks", error.message, error.hint))
        findings += _fitting(model, shards, quantized)
    tokenizer, found = _tokenizer(path, options, model, chat_template)
    return ModelSkeleton(
        name, model, layout, tokenizer, shards, local, quantized, (*findings, *found)
    )


def _like_an_id(name: str) -> bool:
    """Whether a name may be one of the hub's: `owner/name` or `name`, and no path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _on_the_hub(name: str, revision: str | None) -> tuple[Path | None, CheckpointFiles]:
    """A hub model's files: in the cache if they are all there, else as the hub lists them."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        folder = Path(cached).parent
        shards = look_at_folder(folder)
        if shards.whole:
            return folder, shards
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except GatedRepoError:
        what = f"{name} is gated, and this machine has no access to it."
        hint = "Ask for access on its page, then `hf auth login`."
    except RepositoryNotFoundError:
        what, hint = f"The hub has no model {name}, or it is private.", "Check the name."
    except Exception as error:  # whatever the network's library raises, the hub was not reached
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"The hub cannot be asked for {name}, and its files are not all in the cache: "
        what, hint = f"{what}{reason}.", "Connect, or give a local folder."
    else:
        return None, look_at_listing(dict(sizes(info.siblings or ())))
    return None, CheckpointFiles(0, 0, None, (Finding("error", "model", what, hint),))


def _architecture(
    path: str, options: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, str, list[Finding]]:
    """The model on the meta device, how it is quantised, and what was found."""
    try:
        model = outline(path, dtype, options)
    except ModelError as error:
        return None, "", [Finding("error", "architecture", error.message, error.hint)]
    except UNREADABLE as error:
        return None, "", [_unreadable("architecture", error)]
    quantized, findings = _quantization(model.config)
    return model.eval().requires_grad_(False), quantized, findings


def _unreadable(what: str, error: Exception) -> Finding:
    if "trust_remote_code" in str(error):
        return Finding(
            "error",
            what,
            f"The {what} is code that comes with the model, and it is not run unasked.",
            "Read that code, then --trust-remote-code.",
        )
    hints = {
        "architecture": "Give the folder of a causal language model that transformers knows, with "
        "its config.json, or upgrade transformers.",
        "tokenizer": "Put the tokenizer's files beside the weights, or install what it asks for.",
    }
    return Finding(
        "error", what, f"The {what} cannot be read: {first_sentence(error)}.", hints[what]
    )


def _quantization(config: Any) -> tuple[str, list[Finding]]:
    """How a checkpoint is quantised, and whether this machine can load that."""
    from transformers.quantizers.auto import AutoHfQuantizer

    given = getattr(config, "quantization_config", None)
    if not given:
        return "", []
    facts = given if isinstance(given, dict) else given.to_dict()
    four, eight = facts.get("load_in_4bit"), facts.get("load_in_8bit")
    bits = facts.get("bits") or (4 if four else 8 if eight else None)
    method = str(facts.get("quant_method") or ("bitsandbytes" if four or eight else "unknown"))
    named = method + (f", {bits} bit" if bits else "")
    try:
        AutoHfQuantizer.from_config(dict(facts), pre_quantized=True).validate_environment()
    except UNREADABLE as error:
        reason = first_sentence(error)
        what = f"The weights are quantised ({named}), and this machine cannot load them: {reason}."
        return named, [Finding("error", "quantised", what, "Install it, or take the unquantised.")]
    what = f"The weights are quantised ({named}); which layers take adapters shows on loading."
    return named, [Finding("warning", "quantised", what)]


def _fitting(model: Any, shards: CheckpointFiles, quantized: str) -> list[Finding]:
    """Whether the files hold as many numbers as the architecture has."""
    expected = sum(p.numel() for p in model.parameters())
    if quantized or shards.numbers is None or shards.numbers >= 0.999 * expected:
        return []
    return [
        Finding(
            "error",
            "weights",
            f"The files hold {shards.numbers:,} numbers, the architecture has {expected:,}: "
            "what is missing would begin at random.",
            "Hold config.json against the weights: one of them is of another model.",
        )
    ]


def _tokenizer(
    path: str, options: dict[str, Any], model: Any, template: str | None
) -> tuple[Any, list[Finding]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except UNREADABLE as error:
        return None, [_unreadable("tokenizer", error)]
    findings = []
    if template is not None:
        try:
            set_chat_template(tokenizer, Path(template))
        except ConfigError as error:
            return None, [Finding("error", "tokenizer", error.message, error.hint)]
    if tokenizer.eos_token_id is None:
        what = "The tokenizer has no end token, and a response has to end."
        findings.append(Finding("error", "tokenizer", what, "Set eos_token in its configuration."))
    embedded = model.get_input_embeddings().weight.shape[0] if model is not None else None
    if embedded is not None and len(tokenizer) > embedded:
        what = f"The tokenizer has {len(tokenizer):,} tokens, the model embeds {embedded:,}."
        findings.append(Finding("error", "tokenizer", what, "Take the model's own tokenizer."))
    if not getattr(tokenizer, "chat_template", None):
        what = "There is no chat template: prompts are written `User: ...`, `Assistant:`."
        hint = "Edit the chat model, if there is one, or give it a --chat-template."
        findings.append(Finding("warning", "tokenizer", what, hint))
    if not findings:
        pad = (
            "a padding token" if tokenizer.pad_token_id is not None else "padding by its end token"
        )
        what = f"{len(tokenizer):,} tokens, with a chat template and {pad}."
        findings.append(Finding("ok", "tokenizer", what))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, findings
