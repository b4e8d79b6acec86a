r"""What a model and an edit of it take: numbers, bytes and operations, from shapes alone.

Everything here is counted from the shapes of a model's weights, so the model may be on the meta
device, where it has shapes and no weights. Symbols: $n_b$ the numbers in the matrices of block $b$
that one token passes, $n_h$ those of the head, $r$ the rank, $s$ the bytes of a number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from retouch.models.layout import ModelLayout
from retouch.models.lora_targets import is_linear, linear_shape
from retouch.models.weights import Quantize

# What one trainable number of an adapter takes while it is trained, all in float32, as PEFT keeps
# it: weight, gradient, Adam's two moments, moving average, best so far, and a copy while the
# average stands in for it.
TRAINED = 7 * 4
# Saved tensors a token, over the widths of what goes into a block's linear layers and comes out:
# measured 0.8 to 1.6 over nine families (tests/test_footprint.py holds it within a factor of two).
SAVED = 1.25
# Bytes of a number of a quantised weight. Of 64 numbers in 4 bits there is one scale in float32.
QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}


@dataclass(frozen=True)
class Counts:
    """How many numbers a model's weights have, what is shared counted once.

    Attributes:
        blocks: in each block.
        outside: beside the blocks: embeddings, last norm, head.
        passed: in the matrices of each block, as many as one token passes: of a router's experts
            only those that are chosen for it.
        head: in the head's matrix, whether or not it is shared with the embeddings.
    """

    blocks: tuple[int, ...]
    outside: int
    passed: tuple[int, ...]
    head: int

    @property
    def total(self) -> int:
        """All of the weights."""
        return sum(self.blocks) + self.outside


def fused(block: nn.Module) -> dict[str, nn.Parameter]:
    """Experts kept in one tensor `[experts, ...]`: no linear layers, so none gets an adapter."""
    return {
        f"{path}.{name}": weight
        for path, module in block.named_modules()
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))  # a kernel is no expert
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    }


def chosen_share(config: Any) -> float:
    """The share of a layer's experts that one token passes; 1 where there is no router."""
    text = config.get_text_config()
    chosen = getattr(text, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    every = next((n for name in names if (n := getattr(text, name, None))), None)
    return min(1.0, chosen / every) if chosen and every else 1.0


def count(model: Any, layout: ModelLayout) -> Counts:
    """Count the numbers of a model's weights, by block and outside of the blocks."""
    share = chosen_share(model.config)
    blocks = layout.blocks(model)
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    passed = [round(sum(_passed(block, share))) for block in blocks]
    every = sum(p.numel() for p in model.parameters())  # each once, tied or not
    head = model.get_output_embeddings()
    head_size = 0 if head is None else head.weight.numel()
    return Counts(tuple(inside), every - sum(inside), tuple(passed), head_size)


def _passed(block: nn.Module, share: float) -> Iterator[float]:
    for name, weight in block.named_parameters():
        if weight.dim() >= 2:
            # An expert is one of a list of modules, or a row of a fused tensor.
            expert = weight.dim() == 3 or ".experts." in f".{name}"
            yield weight.numel() * (share if expert else 1.0)


def quantised_bytes(model: Any, kind: Quantize, itemsize: int) -> int:
    """Bytes of a model whose linear layers are held in 8 or 4 bits, as bitsandbytes does it.

    The head, embeddings, norms and fused experts stay as they are.
    """
    head, numbers, size = model.get_output_embeddings(), 0, 0.0
    for module in model.modules():
        linear = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        if linear and module is not head:
            into, out = linear_shape(module)
            numbers += into * out
            size += into * out * QUANTISED[kind]
            if kind == "8bit":
                size += 4 * out  # a scale for every number that comes out
    every = sum(int(p.numel()) for p in model.parameters())
    return round(size) + itemsize * (every - numbers)


def widest(model: Any, layout: ModelLayout) -> int:
    """The most numbers that a token brings into and takes out of one matrix of a block."""
    blocks = layout.blocks(model)
    linear = [sum(linear_shape(m)) for block in blocks for m in block.modules() if is_linear(m)]
    rows = [sum(weight.shape[1:]) for block in blocks for weight in fused(block).values()]
    return max([*linear, *rows], default=0)


def adapter_numbers(model: Any, names: Sequence[str], rank: int) -> int:
    r"""Trainable numbers of LoRA on the named linear layers: $\sum r (d_{in} + d_{out})$."""
    return sum(rank * sum(linear_shape(model.get_submodule(name))) for name in names)


def training_bytes(numbers: int) -> int:
    """What an adapter of so many numbers takes in training, with all that is kept of it."""
    return TRAINED * numbers


def activation_bytes(
    model: Any,
    layout: ModelLayout,
    layers: Sequence[int],
    adapted: Collection[str],
    rows: int,
    tokens: int,
    itemsize: int,
) -> int:
    r"""What autograd saves of a run of the blocks over `rows` of `tokens`, an estimate.

    $$ rows \cdot tokens \cdot \sum_{l} \left(1.25\, s\,(d_{in} + d_{out})
       + 4\, [s < 4]\,[l\ adapted]\, d_{in} \right) $$

    over the linear layers $l$ of the blocks (of experts, the share that a token passes). Each
    layer's output and input are kept by some operation after it; below float32, PEFT hands an
    adapter a copy of its input in float32. Attention that is not fused keeps its
    $heads \cdot tokens^2$ weights besides, before and after the softmax.
    """
    share = chosen_share(model.config)
    text = model.config.get_text_config()
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    blocks, token = layout.blocks(model), 0.0
    for i in layers:
        for name, module in blocks[i].named_modules():
            if is_linear(module):
                into, out = linear_shape(module)
                part = share if ".experts." in f".{name}." else 1.0
                token += part * SAVED * itemsize * (into + out)
                if itemsize < 4 and f"{layout.path}.{i}.{name}" in adapted:
                    token += part * 4 * into
        for weight in fused(blocks[i]).values():
            chosen = share * weight.shape[0]
            token += chosen * SAVED * itemsize * (weight.shape[1] + weight.shape[2])
        if eager:
            token += 2 * itemsize * int(getattr(text, "num_attention_heads", 0)) * tokens
    return round(rows * tokens * token)


def state_bytes(hidden: int, positions: int, itemsize: int) -> int:
    """Hidden states at so many positions."""
    return hidden * positions * itemsize


def cache_bytes(config: Any, rows: int, tokens: int, itemsize: int) -> int:
    r"""Keys and values of a generation: $2\,s\,d_{kv}$ a token in each block.

    An upper bound where some blocks look at the nearest tokens only; 0 where there is no attention.
    """
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0))
    if not heads:
        return 0
    kept = int(getattr(text, "num_key_value_heads", None) or heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return 2 * int(text.num_hidden_layers) * kept * width * rows * tokens * itemsize


def forward(numbers: float, tokens: int) -> float:
    r"""Operations of a forward pass: $2\,n$ a token, a multiplication and an addition each.

    What attention does between tokens is left out: it is little as long as texts are much shorter
    than $6\,hidden$.
    """
    return 2.0 * numbers * tokens


def trained(numbers: float, adapter: int, tokens: int) -> float:
    r"""Operations of a training step through frozen weights: $(4\,n + 6\,a)$ a token.

    Forward 2, and 2 for the gradient of what came in; frozen weights need no gradient of their own,
    the $a$ numbers of the adapter do: 6.
    """
    return (4.0 * numbers + 6.0 * adapter) * tokens
