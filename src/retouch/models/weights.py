"""A checkpoint's weights in the class that fits them, whole or quantised."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from retouch.core.config import QUANTIZE, Quantize
from retouch.core.errors import ModelError
from retouch.models.offload import OffloadPlan

# What reading a checkpoint or its tokenizer raises where something is wrong with the files.
UNREADABLE = (
    *(OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError),
    ArithmeticError,  # a model without heads divides by nothing
    StrictDataclassError,  # a value in config.json that transformers does not take
)


def first_sentence(error: Exception) -> str:
    """Why a checkpoint cannot be read, in the library's words: a sentence without its end."""
    if "ignore_mismatched_sizes" in str(error):  # the library's words are for who calls it
        return "its weights have other shapes than its config.json says"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # The first line is the sentence; where it ends in a colon, the next one is what it is about.
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".")


def build_skeleton(path: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """A checkpoint's model on the meta device: shapes and no numbers, so that none is read.

    Raises:
        ModelError: the model decodes no text.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, **options)
    trust = options.get("trust_remote_code", False)
    with torch.device("meta"):
        return _of_kind(path, "from_config", config, dtype=dtype, trust_remote_code=trust)


def read_weights(
    path: str,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize,
    options: dict[str, Any],
    offload_plan: OffloadPlan | None = None,
) -> Any:
    """A checkpoint's model, from safetensors in one file or in several.

    Of a model that sees as well the whole is editable: its text side is what is edited, and pictures
    may still be given to it.

    Args:
        path: a folder or a hub id.
        dtype: of the weights; of a quantised model what is computed in.
        device: where a quantised model is put at once. Others are on the CPU.
        quantize: to 8 bits (LLM.int8, Dettmers et al. 2022) or to 4 (NF4 of QLoRA, Dettmers et al.
            2023) while loading, or not at all.
        options: more for transformers.
        offload_plan: where the parts of a model that is larger than the device go.

    Raises:
        ModelError: quantising needs what is not installed, or the model decodes no text.
    """
    options = {"dtype": dtype, "use_safetensors": True, **options}
    if quantize != "none":
        options |= {
            "quantization_config": bitsandbytes_options(quantize, dtype),
            "device_map": {"": device},
        }
    if offload_plan is not None:
        options |= offload_plan.loading()
    model = _of_kind(path, "from_pretrained", path, **options)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights anew at the first inference:
        # rounded once more, and through a kernel that no gradient flows through.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _of_kind(path: str, maker: str, *given: Any, **options: Any) -> Any:
    """A model made by a class method of the auto class that knows its kind."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        try:
            return getattr(kind, maker)(*given, **options)
        except ValueError as error:
            if not _unknown(error):
                raise
    raise ModelError(
        f"The model {path} is of a kind that writes no text, or reads it with an encoder.",
        "Give a decoder, such as a chat model, or one that sees as well.",
    )


def is_quantised(model: Any) -> bool:
    """Whether the base model's weights are kept in fewer bits than they are computed in."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(base, "is_quantized", False))


def quantization_of(model: Any) -> Quantize:
    """The bits that bitsandbytes quantised a model to; `none` for anything else."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if getattr(config, "load_in_8bit", False):
        return "8bit"
    return "4bit" if getattr(config, "load_in_4bit", False) else "none"


def _unknown(error: ValueError) -> bool:
    """Whether an auto class says that it has no model for the configuration."""
    return str(error).startswith("Unrecognized configuration class")


def bitsandbytes_options(quantize: Quantize, dtype: torch.dtype) -> Any:
    """How transformers is told to quantise to 8 or 4 bits.

    Raises:
        ModelError: there is no such quantisation, or bitsandbytes is not installed.
    """
    if quantize not in QUANTIZE:
        raise ModelError(
            f"There is no quantisation {quantize!r}.", f"Take {', '.join(QUANTIZE)}."
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"--quantize {quantize} needs bitsandbytes, which is not installed.",
            "Install it (`pip install 'retouch[quantized]'`), or load the model unquantised.",
        )
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
