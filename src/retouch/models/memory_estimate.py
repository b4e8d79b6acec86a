r"""Parameters, bytes and floating-point operations of a model and its adapter, from shapes alone.

Everything is computed from the shapes of the weights, so the model may be on the meta device.
Symbols: $n$ the parameters of the matrices that one token passes through, $r$ the LoRA rank, $s$
the bytes of an element.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from retouch.core.config import Quantize
from retouch.models.layout import ModelLayout, is_linear, linear_shape

# Bytes of an adapter's parameter during training, all in float32 as in PEFT: weight, gradient,
# Adam's two moments, moving average, best checkpoint, and a copy while the average is swapped in.
TRAINED_BYTES = 7 * 4
# Tensors that autograd saves for a token, relative to the input and output widths of a block's
# linear layers: 0.8 to 1.6 over nine families (tests/models/test_memory_estimate.py).
SAVED_SHARE = 1.25
# Bytes of a quantised element; 64 elements in 4 bits share a scale in float32.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of a model; shared ones are counted once."""

    blocks: tuple[int, ...]  # of each block
    outside: int  # outside of the blocks: embeddings, final norm, head
    # Of the matrices of each block that one token passes through: only the selected experts.
    active: tuple[int, ...]
    head: int  # of the head's matrix, whether or not it is tied to the embeddings

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.blocks) + self.outside

    @property
    def active_total(self) -> int:
        """Parameters of the matrices that one token passes through, the head included."""
        return sum(self.active) + self.head


def count_parameters(model: Any, layout: ModelLayout) -> ParameterCounts:
    """Count a model's parameters, by block and outside of the blocks."""
    share, blocks = active_expert_share(model.config), layout.blocks(model)
    inside = tuple(_num_parameters(block) for block in blocks)
    head = model.get_output_embeddings()
    return ParameterCounts(
        blocks=inside,
        outside=_num_parameters(model) - sum(inside),
        active=tuple(_active_parameters(block, share) for block in blocks),
        head=0 if head is None else head.weight.numel(),
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # tied ones occur once


def _active_parameters(block: nn.Module, share: float) -> int:
    count = 0.0
    for name, weight in block.named_parameters():
        if weight.dim() >= 2:
            # Experts are a list of modules, or the rows of a fused tensor.
            is_expert = weight.dim() == 3 or ".experts." in f".{name}"
            count += weight.numel() * (share if is_expert else 1.0)
    return round(count)


def active_expert_share(config: Any) -> float:
    """The share of a layer's experts that one token passes through; 1 without a router."""
    text = config.get_text_config()
    selected = getattr(text, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((n for name in names if (n := getattr(text, name, None))), None)
    return min(1.0, selected / total) if selected and total else 1.0


def fused_experts(block: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters `[experts, ...]` of a block, which are not linear layers, by name."""
    return {
        f"{path}.{name}": weight
        for path, module in block.named_modules()
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))  # kernels have 3 dimensions
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    }


def _matrices(block: nn.Module, share: float = 1.0) -> Iterator[tuple[str, int, int, float]]:
    """Name, input and output size of each matrix of a block, and how many a token passes through.

    That is 1, and the selected `share` for an expert or for all experts of a fused tensor.
    """
    for name, module in block.named_modules():
        if is_linear(module):
            yield name, *linear_shape(module), share if ".experts." in f".{name}." else 1.0
    for name, weight in fused_experts(block).items():
        experts, *sizes = weight.shape
        yield name, sizes[0], sizes[1], share * experts


def quantised_bytes(model: Any, kind: Quantize, itemsize: int) -> int:
    """Bytes of a model whose linear layers bitsandbytes quantises to 8 or 4 bits.

    Head, embeddings, norms and fused experts keep `itemsize` bytes an element.
    """
    plain = [m for m in model.modules() if type(m) is nn.Linear or type(m).__name__ == "Conv1D"]
    head = model.get_output_embeddings()
    shapes = [linear_shape(module) for module in plain if module is not head]
    elements = sum(fan_in * fan_out for fan_in, fan_out in shapes)
    scales = sum(fan_out for _, fan_out in shapes) if kind == "8bit" else 0  # one for every output
    quantised = round(elements * QUANTISED_BYTES[kind]) + FLOAT32_BYTES * scales
    return quantised + itemsize * (_num_parameters(model) - elements)


def lora_parameters(model: Any, names: Sequence[str], r: int) -> int:
    r"""Trainable parameters of LoRA on the named linear layers: $\sum r (d_{in} + d_{out})$."""
    return sum(r * sum(linear_shape(model.get_submodule(name))) for name in names)


def activation_bytes(
    model: Any,
    layout: ModelLayout,
    layers: Sequence[int],
    adapted: Collection[str],
    rows: int,
    tokens: int,
    itemsize: int,
) -> int:
    r"""Estimate the bytes that autograd saves for a forward pass of some blocks.

    $$ rows \cdot tokens \cdot \sum_{l} \left(1.25\, s\,(d_{in} + d_{out})
       + 4\, [s < 4]\,[l\ adapted]\, d_{in} \right) $$

    over the linear layers $l$ of the blocks (of experts, the share that a token passes through),
    of which those with full names in `adapted` have an adapter. Every layer's input and output are
    saved by a later operation; below float32, PEFT gives an adapter a copy of its input in float32.
    Eager attention saves its $heads \cdot tokens^2$ weights too, before and after the softmax.
    """
    share, blocks = active_expert_share(model.config), layout.blocks(model)
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 0))
    per_token = 0.0
    for i in layers:
        for name, fan_in, fan_out, part in _matrices(blocks[i], share):
            per_token += part * SAVED_SHARE * itemsize * (fan_in + fan_out)
            if itemsize < FLOAT32_BYTES and f"{layout.path}.{i}.{name}" in adapted:
                per_token += part * FLOAT32_BYTES * fan_in
        if eager:
            per_token += 2 * itemsize * heads * tokens
    return round(rows * tokens * per_token)


def generation_bytes(model: Any, layout: ModelLayout, tokens: int, itemsize: int) -> int:
    """Maximum bytes of one row of `tokens` during generation.

    Keys and values, the input and output of the widest matrix, the last logits and their copies.
    """
    sizes = (one for block in layout.blocks(model) for one in _matrices(block))
    width = max((fan_in + fan_out for _, fan_in, fan_out, _ in sizes), default=0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    cache = kv_cache_bytes(model.config, 1, tokens, itemsize)
    return cache + 2 * width * tokens * itemsize + 3 * FLOAT32_BYTES * vocabulary


def text_bytes(model: Any, layout: ModelLayout, tokens: int, itemsize: int) -> int:
    """Minimum bytes that a pass of one text of `tokens` needs beside the weights.

    What generation needs, and a mask in float32 between all tokens; eager attention has its weights
    before and after the softmax, too.
    """
    needed = generation_bytes(model, layout, tokens, itemsize) + FLOAT32_BYTES * tokens**2
    if getattr(model.config, "_attn_implementation", None) == "eager":
        heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 0))
        needed += 2 * itemsize * heads * tokens**2
    return needed


def max_generation_rows(free_bytes: int | None, batch_size: int, row_bytes: int) -> int:
    """Rows that generate together: `batch_size`, or what fits into half of `free_bytes`."""
    if free_bytes is None:
        return batch_size
    return max(1, min(batch_size, free_bytes // (2 * row_bytes)))


def kv_cache_bytes(config: Any, rows: int, tokens: int, itemsize: int) -> int:
    r"""Bytes of keys and values during generation: $2\,s\,d_{kv}$ for a token of each block.

    An upper bound for blocks with sliding-window attention; 0 for models without attention.
    """
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0))
    if not heads:
        return 0
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    head_size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return 2 * int(text.num_hidden_layers) * kv_heads * head_size * rows * tokens * itemsize


def forward_flops(parameters: float, tokens: int) -> float:
    r"""Floating-point operations of a forward pass: $2\,n$ for a token.

    Attention between tokens is left out: it is small for texts much shorter than $6\,hidden$.
    """
    return 2.0 * parameters * tokens


def training_flops(parameters: float, adapter_parameters: int, tokens: int) -> float:
    r"""Floating-point operations of a step through frozen weights: $4\,n + 6\,a$ for a token.

    2 forward and 2 for the gradient of the input; only the $a$ parameters of the adapter need
    gradients of their own.
    """
    return (4.0 * parameters + 6.0 * adapter_parameters) * tokens
