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
from retouch.models.layout import ModelLayout
from retouch.models.lora_targets import is_linear, linear_shape

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
    """Numbers of parameters of a model; shared ones are counted once.

    Attributes:
        blocks: of each block.
        outside: outside of the blocks: embeddings, final norm, head.
        active: of the matrices of each block that one token passes through: only the experts that
            a router selects.
        head: of the head's matrix, whether or not it is tied to the embeddings.
    """

    blocks: tuple[int, ...]
    outside: int
    active: tuple[int, ...]
    head: int

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
    share = active_expert_share(model.config)
    blocks = layout.blocks(model)
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    total = sum(p.numel() for p in model.parameters())  # tied ones occur once
    head = model.get_output_embeddings()
    return ParameterCounts(
        blocks=tuple(inside),
        outside=total - sum(inside),
        active=tuple(round(sum(_active_parameters(block, share))) for block in blocks),
        head=0 if head is None else head.weight.numel(),
    )


def _active_parameters(block: nn.Module, share: float) -> Iterator[float]:
    for name, weight in block.named_parameters():
        if weight.dim() >= 2:
            # Experts are a list of modules, or the rows of a fused tensor.
            is_expert = weight.dim() == 3 or ".experts." in f".{name}"
            yield weight.numel() * (share if is_expert else 1.0)


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


def quantised_bytes(model: Any, kind: Quantize, itemsize: int) -> int:
    """Bytes of a model whose linear layers bitsandbytes quantises to 8 or 4 bits.

    Head, embeddings, norms and fused experts keep `itemsize` bytes an element.
    """
    head, elements, size = model.get_output_embeddings(), 0, 0.0
    for module in model.modules():
        is_plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        if is_plain and module is not head:
            fan_in, fan_out = linear_shape(module)
            elements += fan_in * fan_out
            size += fan_in * fan_out * QUANTISED_BYTES[kind]
            if kind == "8bit":
                size += FLOAT32_BYTES * fan_out  # a scale for every output
    total = sum(int(p.numel()) for p in model.parameters())
    return round(size) + itemsize * (total - elements)


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

    over the linear layers $l$ of the blocks (of experts, the share that a token passes through).
    Every layer's input and output are saved by a later operation; below float32, PEFT gives an
    adapter a copy of its input in float32. Eager attention saves its $heads \cdot tokens^2$ weights
    too, before and after the softmax.

    Args:
        model: the model.
        layout: where its blocks are.
        layers: the blocks that run.
        adapted: full names of the linear layers with an adapter.
        rows: rows of the batch.
        tokens: tokens of each row.
        itemsize: bytes of an element.
    """
    share = active_expert_share(model.config)
    text = model.config.get_text_config()
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    blocks, per_token = layout.blocks(model), 0.0
    for i in layers:
        for name, module in blocks[i].named_modules():
            if is_linear(module):
                fan_in, fan_out = linear_shape(module)
                part = share if ".experts." in f".{name}." else 1.0
                per_token += part * SAVED_SHARE * itemsize * (fan_in + fan_out)
                if itemsize < FLOAT32_BYTES and f"{layout.path}.{i}.{name}" in adapted:
                    per_token += part * FLOAT32_BYTES * fan_in
        for weight in fused_experts(blocks[i]).values():
            selected = share * weight.shape[0]
            per_token += selected * SAVED_SHARE * itemsize * (weight.shape[1] + weight.shape[2])
        if eager:
            per_token += 2 * itemsize * int(getattr(text, "num_attention_heads", 0)) * tokens
    return round(rows * tokens * per_token)


def generation_bytes(model: Any, layout: ModelLayout, tokens: int, itemsize: int) -> int:
    """Maximum bytes of one row of `tokens` during generation.

    Its keys and values, the input and output of the widest matrix, and the logits of the last
    token with their copies in float32.
    """
    width = _max_width(model, layout)
    vocabulary = int(model.config.get_text_config().vocab_size)
    cache = kv_cache_bytes(model.config, 1, tokens, itemsize)
    return cache + 2 * width * tokens * itemsize + 3 * FLOAT32_BYTES * vocabulary


def max_generation_rows(free_bytes: int | None, batch_size: int, row_bytes: int) -> int:
    """Rows that generate together: `batch_size`, or what fits into half of `free_bytes`."""
    if free_bytes is None:
        return batch_size
    return max(1, min(batch_size, free_bytes // (2 * row_bytes)))


def _max_width(model: Any, layout: ModelLayout) -> int:
    """The largest sum of input and output size of a matrix in the blocks."""
    blocks = layout.blocks(model)
    linear = [sum(linear_shape(m)) for block in blocks for m in block.modules() if is_linear(m)]
    fused = [sum(weight.shape[1:]) for block in blocks for weight in fused_experts(block).values()]
    return max([*linear, *fused], default=0)


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
