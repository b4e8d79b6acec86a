"""The files of a PEFT adapter from elsewhere, checked before PEFT reads them, and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retouch.core.errors import ModelError
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.run_dir import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from retouch.core.serialization import parse_json
from retouch.models.editable_model import EditableModel

PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")

# What a LoRA adapter needs. Other settings of PEFT name modules to import or files to read, or
# belong to kinds of adapters that are not tested here: they must have their default.
KNOWN = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",  # of a class to import, which PEFT's own loader reads; checked below
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    )
)
# PEFT takes these texts as regular expressions, which can take forever.
PATTERNS = ("target_modules", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save")
# The numbers, with their types and highest values.
NUMBER, WHOLE = (int, float), (int,)
LIMITS = (
    ("r", WHOLE, 16_384),
    ("rank_pattern", WHOLE, 16_384),
    ("lora_alpha", NUMBER, 1e6),
    ("alpha_pattern", NUMBER, 1e6),
    ("lora_dropout", NUMBER, 1),
    ("layers_to_transform", WHOLE, 10_000),
)
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", "all", "lora_only"),
    **dict.fromkeys(("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out"), (False, True)),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "inference_mode": (True, False),
}
NAME = re.compile(r"[\w.-]{1,500}")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter, checked: plain values of a LoRA adapter with safetensors weights.

    Raises:
        ModelError: the weights are pickled or missing, or the settings are broken, of another kind
            of adapter, or could import or read something else.
    """
    from peft import LoraConfig

    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = next((name for name in PICKLED if (folder / name).exists()), None)
        problem = f", and {pickled} may run code" if pickled else ""
        hint = "Save the adapter with `safe_serialization=True`." if pickled else ""
        message = f"{folder}: {ADAPTER_WEIGHTS} is missing{problem}."
        raise ModelError(message, hint, code="adapter-not-safetensors")
    file = folder / ADAPTER_CONFIG
    try:
        values = parse_json(read_text(file, MAX_CONFIG))
    except (OSError, ValueError) as error:
        raise _invalid(file, f"cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise _invalid(file, "is no JSON object of a LoRA adapter")
    if values.get("peft_type") != "LORA":
        raise _invalid(file, f"has `peft_type` {values.get('peft_type')!r:.100}, which is not LORA")
    if values.get("task_type") not in ("CAUSAL_LM", None):
        raise _invalid(
            file, f"has `task_type` {values['task_type']!r:.100}, which is not CAUSAL_LM"
        )
    defaults = LoraConfig().to_dict()
    for key, value in values.items():
        if key not in KNOWN and value not in (None, False, [], {}, defaults.get(key)):
            raise _invalid(file, f"has {key!r:.100}: {value!r:.100}, which is not supported")
    for key in PATTERNS:
        for name in _listed(values.get(key)):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise _invalid(file, f"has {name!r:.100} in `{key}`, which is no name of a module")
    mapping = values.get("auto_mapping") or {}
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and not str(library).startswith("transformers."):
        raise _invalid(file, f"has `auto_mapping` to {library!r:.100}, which is no model class")
    for key, kind, highest in LIMITS:
        value = values.get(key)
        for number in value.values() if isinstance(value, dict) else _listed(value):
            if type(number) not in kind or not 0 <= number <= highest:
                raise _invalid(file, f"has `{key}` {number!r:.100}")
    for key, allowed in CHOICES.items():
        if values.get(key, allowed[0]) not in allowed:
            raise _invalid(file, f"has `{key}` {values[key]!r:.100}")
    return values


def _listed(value: Any) -> list[Any]:
    """The entries of a list or a mapping, or a single value; none for None."""
    if isinstance(value, list | dict):
        return list(value)
    return [] if value is None else [value]


def check_weights(editable: EditableModel, folder: Path, name: str) -> None:
    """Check that the file has the tensors of an adapter that was added to the model, and no others.

    PEFT would leave tensors that the file lacks as they were initialised, and ignore those that are
    unexpected.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or not finite.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected: Mapping[str, Any] = get_peft_model_state_dict(
        editable.model, adapter_name=name, save_embedding_layers=False
    )
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        found = set(file.keys())
        problem = ""
        if missing := sorted(expected.keys() - found):
            problem = f"lacks the tensor {missing[0]!r:.200}"
        elif unexpected := sorted(found - expected.keys()):
            problem = f"has the unexpected tensor {unexpected[0]!r:.200}"
        elif other := [key for key in sorted(found) if _shape(file, key) != expected[key].shape]:
            problem = f"has another shape for the tensor {other[0]!r:.200}"
        elif broken := [key for key in sorted(found) if not file.get_tensor(key).isfinite().all()]:
            problem = f"has values that are not finite in the tensor {broken[0]!r:.200}"
    if problem:
        hint = "Load it on the model that it was trained for, or make it again."
        message = f"The adapter {folder} does not fit {editable.name}: it {problem}."
        raise ModelError(message, hint, code="adapter-mismatch")


def _shape(file: Any, key: str) -> tuple[int, ...]:
    return tuple(file.get_slice(key).get_shape())


def _invalid(file: Path, problem: str) -> ModelError:
    hint = "Retouch loads LoRA adapters with safetensors weights alone."
    return ModelError(f"{file} {problem}.", hint, code="adapter-config-invalid")
