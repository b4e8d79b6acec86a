"""Load a checkpoint's weights with the matching transformers class, quantised or not."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from retouch.core.config import Quantize
from retouch.core.errors import ModelError
from retouch.models.offload import OffloadPlan

# What transformers raises for broken checkpoints and tokenizers.
UNREADABLE = (
    *(OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError),
    ArithmeticError,  # a model with zero attention heads divides by zero
    StrictDataclassError,  # a value in config.json of a wrong type
    SafetensorError,  # weights that are cut off
)


def first_sentence(error: Exception) -> str:
    """The library's reason why a checkpoint cannot be read, without the final full stop."""
    if "ignore_mismatched_sizes" in str(error):  # the library's text addresses programmers
        return "its weights have other shapes than its config.json says"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A first line that ends in a colon is completed by the next one.
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".")


def remote_code(error: Exception) -> ModelError | None:
    """The error for a model whose code would have to run; None for any other error."""
    if "trust_remote_code" not in str(error):
        return None
    message = "The model comes with code of its own, which is not run by default."
    hint = "Read that code, then set `trust_remote_code`."
    return ModelError(message, hint, code="remote-code")


def build_skeleton(path: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Build a checkpoint's model on the meta device: shapes without values; no weights are read.

    Raises:
        ModelError: the model is not a decoder of text.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, **options)
    trust = options.get("trust_remote_code", False)
    with torch.device("meta"):
        return call_auto_class(path, "from_config", config, dtype=dtype, trust_remote_code=trust)


def read_weights(
    path: str,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize,
    options: dict[str, Any],
    offload_plan: OffloadPlan | None = None,
) -> Any:
    """Load a checkpoint's model from safetensors; a vision-language model is loaded whole.

    The model is on the CPU, or where `offload_plan` places it. A quantised one (LLM.int8, Dettmers
    et al. 2022, or NF4 of QLoRA, Dettmers et al. 2023) is on `device` and computes in `dtype`.

    Raises:
        ModelError: bitsandbytes is missing, the model is not a decoder of text, or the files have
            other tensors than the model.
    """
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **options}
    if quantize != "none":
        config = bitsandbytes_config(quantize, dtype)
        options |= {"quantization_config": config, "device_map": {"": device}}
    if offload_plan is not None:
        options |= offload_plan.loading_options()
    model, info = call_auto_class(path, "from_pretrained", path, **options)
    _check_tensors(path, info)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first inference:
        # rounded a second time, and for a kernel that does not support gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _check_tensors(path: str, info: Mapping[str, Any]) -> None:
    """Check that all weights of a model were in its files, and nothing else was.

    transformers would leave missing ones as they were initialised: at random.
    """
    problems = (
        ("missing_keys", "lack the weight"),
        ("unexpected_keys", "have the weight, which the model does not have,"),
        ("mismatched_keys", "have another shape of the weight"),
    )
    for kind, problem in problems:
        if found := sorted(info.get(kind) or (), key=str):
            first = found[0] if isinstance(found[0], str) else found[0][0]
            message = f"The files of {path} {problem} {first!r:.200}."
            hint = "Download them again, or give the config.json that belongs to them."
            raise ModelError(message, hint, code="weights-mismatch")


def check_finite(model: Any, name: str) -> None:
    """Check that no weight of a model is NaN or infinite.

    Raises:
        ModelError: one is; it is named.
    """
    for key, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or not weight.numel():
            continue
        low, high = weight.detach().aminmax()  # NaN if any value is
        if not (low.isfinite() and high.isfinite()):
            kind = "NaN" if low.isnan() else "infinity"
            message = f"The weight {key!r:.200} of {name} has the value {kind}."
            hint = "Download the model again, or load it in another `dtype`."
            raise ModelError(message, hint, code="weights-not-finite")


def call_auto_class(path: str, method: str, *args: Any, **options: Any) -> Any:
    """The result of a class method of the first auto class that supports the model.

    Raises:
        ModelError: none does: the model is not a decoder of text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        try:
            return getattr(auto_class, method)(*args, **options)
        except ValueError as error:
            if not str(error).startswith("Unrecognized configuration class"):
                raise
    message = f"The model {path} generates no text, or is an encoder-decoder."
    hint = "Give a decoder, such as a chat model or a vision-language model."
    raise ModelError(message, hint, code="architecture-unsupported")


def bitsandbytes_config(quantize: Quantize, dtype: torch.dtype) -> Any:
    """The configuration with which transformers quantises to 8 or 4 bits.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        message = f"`quantize` {quantize} needs bitsandbytes, which is not installed."
        hint = "pip install 'retouch[quantized]', or load the model unquantised."
        raise ModelError(message, hint, code="library-missing")
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
