"""Load a model and its tokenizer by a short name, from a folder, a GGUF file or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from retouch.core.chat_template import TemplateFailure, apply_template, set_template_settings
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.hub import cached_folder, list_hub_files
from retouch.core.model_names import MODEL_HINT, NAMED_MODELS, POCKET_NAME, is_gguf_name
from retouch.core.run_dir import find_adapter
from retouch.core.serialization import parse_json
from retouch.core.types import OnEvent, ignore_event
from retouch.models import distributed
from retouch.models.adapter_files import check_weights, read_adapter_config
from retouch.models.base_record import check_base_record
from retouch.models.checkpoint_files import check_folder, require_complete
from retouch.models.editable_model import EditableModel, check_tokenizer, prepare_tokenizer
from retouch.models.fsdp import shard
from retouch.models.gguf import local_copy
from retouch.models.layout import find_layout
from retouch.models.offload import OffloadPlan
from retouch.models.oom import is_out_of_memory
from retouch.models.weights import (
    UNREADABLE,
    build_skeleton,
    check_finite,
    first_sentence,
    read_weights,
    remote_code,
)

POCKET = Path(__file__).parent / "pocket"
PROBE = "a question"  # the user turn that a chat template is tried with


def model_name(name: str) -> str:
    """The name that concepts know a model by: `pocket` for folders with it, otherwise the same.

    A folder has it if its configuration is pocket's: it may be an edited copy.
    """
    is_pocket = name == POCKET_NAME or _sizes(Path(name)) == _sizes(POCKET)
    return POCKET_NAME if is_pocket else name


def _sizes(folder: Path) -> list[Any] | None:
    """The values of a model's configuration that tell pocket from other models."""
    try:
        config = parse_json(read_text(folder / "config.json", MAX_CONFIG))
    except (OSError, ValueError):
        return None
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    return [config.get(name) for name in names] if isinstance(config, dict) else None


def load(
    name: str = "pocket",
    config: LoadConfig | None = None,
    *,
    adapter: Path | str | None = None,
    on_event: OnEvent = ignore_event,
) -> EditableModel:
    """Load a model for inference, frozen, with an adapter if one is given.

    Args:
        name: `pocket`, `smollm2`, a local folder, a GGUF file or a hub id. A GGUF file is converted
            to safetensors once, in the cache folder.
        config: how it is loaded (default: the defaults of `LoadConfig`).
        adapter: a run directory, or a PEFT adapter folder.
        on_event: receives a message where something takes long, such as a conversion.

    Raises:
        ModelError: the model, its tokenizer, the adapter or the device cannot be loaded, a library
            is missing, or the device memory limit is too low.
        ConfigError: the chat template is invalid, or options exclude each other.
        RunError: there is no adapter.
    """
    from transformers import AutoTokenizer

    config = config or LoadConfig()
    check_load_config(config)
    device = find_device(config.device)
    dtype = find_dtype(config.dtype, device)
    source = find_source(name, config.revision)
    if isinstance(source, Path) and not source.is_dir():
        source = local_copy(source, dtype, on_event)
    elif isinstance(source, Path) and not (source / "run.json").exists():
        require_complete(source)
    if isinstance(source, str):
        source = _reachable(source, config.revision, install_hint(name))
    path = str(source)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        plan = None
        if config.max_device_bytes is not None:
            empty = build_skeleton(path, dtype, options)
            limit, layout = config.max_device_bytes, find_layout(empty)
            plan = OffloadPlan(empty, layout, device, limit, dtype.itemsize)
        model = read_weights(path, dtype, device, config.quantize, options, plan)
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        message = f"The model {name!r} cannot be loaded: {first_sentence(error)}."
        hint = install_hint(name) or MODEL_HINT
        if (Path(path) / "run.json").exists():
            hint = f"It is a run: give the model that it edits, and `--adapter {name}`."
        raise remote_code(error) or ModelError(message, hint, code="model-unreadable") from None
    prepare_tokenizer(tokenizer, name)
    set_template_settings(tokenizer, config.chat_template_kwargs, config.chat_template_time)
    if config.chat_template is not None:
        set_chat_template(tokenizer, Path(config.chat_template))
    check_tokenizer(tokenizer, model)
    editable = EditableModel(
        model.requires_grad_(False).eval(),
        tokenizer,
        name,
        config.revision,
        device,
        find_layout(model),
        sharded=config.fsdp,
        offload_plan=plan,
        loaded_with=config,
    )
    check_finite(model, name)
    if config.fsdp:
        shard(model, editable.layout, device)
    elif (plan is None or plan.whole) and not editable.quantised:
        model.to(device)  # quantised and offloaded models are in place already
    if adapter is not None:
        add_adapter(editable, Path(adapter))
    return editable


def find_source(name: str, revision: str | None = None) -> Path | str:
    """What a model's name stands for: a folder, a GGUF file (which may not exist), or a hub id.

    Args:
        name: a short name, a path or a hub id.
        revision: the hub revision, if one is asked for: then it is the hub's model.
    """
    known = NAMED_MODELS.get(name)
    if known is None:
        path = Path(name)
        return path if path.exists() or is_gguf_name(name) else name
    if known.hub_id is None:
        return POCKET
    # Found without importing it: what it imports need not be installed.
    spec = find_spec(known.package) if known.package and revision is None else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    return known.hub_id


def _reachable(name: str, revision: str | None, install: str) -> Path | str:
    """A hub model's id; where the hub cannot be reached, its cached folder.

    Raises:
        ModelError: the hub has no such model; or it cannot be reached, and not all is cached.
    """
    try:
        list_hub_files(name, revision, raises=ModelError, hint=install)
    except ModelError as error:
        folder = cached_folder(name, revision) if error.code == "hub-unreachable" else None
        if folder is None or check_folder(folder).num_parameters is None:
            raise
        return folder
    return name


def install_hint(name: str) -> str:
    """How to install a named model that needs no hub; empty for other models."""
    known = NAMED_MODELS.get(name)
    return f"Without the hub: {known.install}" if known is not None and known.install else ""


def as_editable(model: Any, tokenizer: Any = None) -> EditableModel | None:
    """A transformers model with its tokenizer, or an `EditableModel`; None for a name.

    Raises:
        ConfigError: a tokenizer is missing, or is given beside something that has one.
    """
    if model is None or isinstance(model, str | EditableModel):
        if tokenizer is not None:
            message = "`tokenizer` is for a transformers model; others have their own."
            hint = "Leave it out. A concept is the third argument, or `concept=...`."
            raise ConfigError(message, hint, code="tokenizer-unexpected")
        return model if isinstance(model, EditableModel) else None
    if tokenizer is None:
        message = f"`tokenizer` is missing beside the {type(model).__name__}."
        hint = "Pass it: AutoTokenizer.from_pretrained(...)."
        raise ConfigError(message, hint, code="tokenizer-missing")
    return EditableModel.from_transformers(model, tokenizer)


def loaded_already(argument: str) -> ConfigError:
    """The error for load options beside a loaded model, which are in `argument`."""
    message = f"`{argument}` has load options, and the model is loaded already."
    hint = "A loaded model keeps its own revision, dtype, quantisation and template."
    return ConfigError(message, f"{hint} Leave them out.", code="options-of-loaded-model")


def check_load_config(config: LoadConfig) -> None:
    """Check the options that exclude each other.

    Raises:
        ConfigError: two of them are given.
    """
    values = config.model_dump(include={"max_device_memory", "fsdp", "quantize"})
    given = [name for name, value in values.items() if value not in (None, False, "none")]
    if len(given) > 1:
        message = f"`{given[0]}` and `{given[1]}` cannot be combined."
        raise ConfigError(message, "Leave one of them out.", code="options-exclusive")


def set_chat_template(tokenizer: Any, path: Path) -> None:
    """Replace the tokenizer's chat template by the one in a file, if it works.

    Raises:
        ConfigError: the file cannot be read, the template fails, or its output lacks the content
            of the user's turn.
    """
    try:
        tokenizer.chat_template = read_text(path, MAX_CONFIG)
        chat = [{"role": "user", "content": PROBE}]
        text = apply_template(tokenizer, chat, add_generation_prompt=True)
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        message = f"The chat template {path} cannot be read: {problem}."
        hint = "Set `chat_template` to a readable UTF-8 file."
        raise ConfigError(message, hint, code="chat-template-unreadable") from None
    except TemplateFailure as error:
        message = f"The chat template {path} fails: {error}."
        hint = "Use a Jinja template in the format of transformers."
        raise ConfigError(message, hint, code="chat-template-invalid") from None
    if PROBE not in text:
        message = f"The output of the chat template {path} lacks the content of the user's turn."
        hint = "Iterate over `messages`, as the templates of tokenizers do."
        raise ConfigError(message, hint, code="chat-template-invalid")


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one.

    Raises:
        ModelError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = distributed.local_device(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        message = f"The device {name!r} is not available: {reason}."
        raise ModelError(message, "Use the device `cpu`.", code="device-missing") from None
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is float32 on the CPU and bfloat16 on a GPU."""
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, auto if name == "auto" else name)
    return dtype


def add_adapter(editable: EditableModel, folder: Path, name: str = "default") -> None:
    """Put a saved adapter on the model; a run directory stands for its adapter.

    Raises:
        ModelError: the adapter does not fit the model, or was made on another one.
        RunError: there is no adapter.
    """
    import peft

    folder = find_adapter(folder)
    config = read_adapter_config(folder)
    with adapter_errors(editable, folder):
        if editable.offload_plan is not None:
            _keep_adapted_layers(editable, config)
        path = str(folder.absolute())  # a folder's name is no hub id, whatever it is called
        settings = peft.PeftConfig.from_pretrained(path)
        settings.inference_mode = True
        if editable.adapted:
            editable.model.add_adapter(name, settings)
        else:
            # As of PEFT's `from_pretrained`, whose errors would leave layers in the model.
            editable.model = peft.PeftModelForCausalLM(editable.model, settings, name)
        try:
            check_weights(editable, folder, name)
            check_base_record(editable, folder)
            editable.model.load_adapter(path, adapter_name=name, local_files_only=True)
        except BaseException:
            editable.model.delete_adapter(name)
            if not editable.model.peft_config:
                editable.model = editable.model.unload()
            raise
    editable.model.requires_grad_(False).eval()


@contextmanager
def adapter_added(editable: EditableModel, adapter: Path | str | None) -> Iterator[None]:
    """Put a saved adapter on a model inside the context; None puts nothing on it.

    Raises:
        ConfigError: the model has an adapter already.
        RunError: the adapter cannot be read.
    """
    if adapter is None:
        yield
        return
    if editable.adapted:
        raise ConfigError(
            f"`adapter` is given, and {editable.name} has an adapter already.",
            "Pass the base model, or leave `adapter` out.",
            code="model-edited",
        )
    add_adapter(editable, Path(adapter))
    try:
        yield
    finally:
        editable.model = editable.model.unload()


def _keep_adapted_layers(editable: EditableModel, config: Mapping[str, Any]) -> None:
    """Keep the layers that an adapter's configuration names, or all, on the device."""
    modules, inside = config.get("target_modules"), f"{editable.layout.path}."
    names = [name for name in modules or () if isinstance(modules, list) and inside in name]
    numbers = {name.split(inside, 1)[1].split(".")[0] for name in names}
    layers = {int(number) for number in numbers if number.isdigit()}
    editable.keep_on_device(layers or range(editable.layout.depth))
    # PEFT would dispatch the whole model again, by a device map of its own.
    vars(editable.model).pop("hf_device_map", None)


@contextmanager
def adapter_errors(editable: EditableModel, folder: Path) -> Iterator[None]:
    """Report errors of an adapter's files as one error that names adapter and model.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0]
        message = f"The adapter {folder} does not fit {editable.name}: {reason}"
        hint = "Load it on the model that it was trained for."
        raise ModelError(message, hint, code="adapter-mismatch") from None
