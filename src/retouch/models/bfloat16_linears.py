"""Frozen linear layers that multiply in bfloat16 where the processor has instructions for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from retouch.core.config import ComputeDtype

MIN_SIZE = 512  # inputs of a linear layer; below it the conversions cost more than they save


class Bfloat16Linears:
    """Copies in bfloat16 of frozen linear layers, used inside `applied()`.

    Activations are rounded on entry and products are accumulated in float32; the products of LoRA
    adapters are computed in the same way and added in float32. `benchmarks.speed` measures speed
    and error.
    """

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._copies: dict[Any, _Copy] = {module: _Copy(module) for module in modules}
        self._rounding = _Rounding()

    @contextmanager
    def applied(self, adapted: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Multiply in bfloat16 inside the context.

        Args:
            adapted: PEFT's wrappers of linear layers, as far as there are any.
        """
        forwards: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {}
        for module, copied in self._copies.items():
            copied.refresh(module)
            forwards[module] = partial(self._linear, copied)
        for wrapper in adapted:
            layer_copy = self._copies.get(wrapper.base_layer)
            if layer_copy is not None and _is_plain(wrapper):
                forwards[wrapper] = partial(self._lora_linear, layer_copy, wrapper)
        own = {module: vars(module).get("forward") for module in forwards}
        for module, forward in forwards.items():
            module.forward = forward
        try:
            yield
        finally:
            for module, before in own.items():
                del module.forward
                if before is not None:
                    module.forward = before
            self._rounding.clear()

    def _linear(self, copied: _Copy, states: torch.Tensor) -> torch.Tensor:
        return F.linear(self._rounding(states), copied.weight, copied.bias).to(states.dtype)

    def _lora_linear(self, copied: _Copy, wrapper: Any, states: torch.Tensor) -> torch.Tensor:
        """The forward pass of `peft.tuners.lora.Linear`, with one rounding of its input."""
        rounded = self._rounding(states)
        out = F.linear(rounded, copied.weight, copied.bias).to(states.dtype)
        if wrapper.disable_adapters:
            return out
        for name in wrapper.active_adapters:
            if name in wrapper.lora_A:
                inner = F.linear(rounded, wrapper.lora_A[name].weight.bfloat16())
                scaled = wrapper.scaling[name] * wrapper.lora_B[name].weight
                out = out + F.linear(inner, scaled.bfloat16())
        return out


class _Rounding:
    """Rounds the input of several layers once, such as that of queries, keys and values."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last input."""
        self._states: torch.Tensor | None = None
        self._rounded: torch.Tensor | None = None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The states in bfloat16."""
        if self._rounded is None or states is not self._states:
            self._states, self._rounded = states, states.bfloat16()
        return self._rounded


class _Copy:
    """The weights of a linear layer in bfloat16."""

    def __init__(self, module: nn.Linear) -> None:
        self._version = -1
        self.refresh(module)

    def refresh(self, module: nn.Linear) -> None:
        """Copy the weights again if they were changed in place."""
        if self._version == module.weight._version:
            return
        self._version = module.weight._version
        self.weight = module.weight.detach().bfloat16()
        bias: Any = module.bias
        self.bias: torch.Tensor | None = None if bias is None else bias.detach().bfloat16()


def _is_plain(wrapper: Any) -> bool:
    """Whether a wrapper of PEFT is plain LoRA: unmerged, without dropout or another variant."""
    dropouts = getattr(wrapper, "lora_dropout", {}).values()
    return (
        type(wrapper).__module__ == "peft.tuners.lora.layer"
        and type(wrapper).__name__ == "Linear"
        and not wrapper.merged
        and not getattr(wrapper, "lora_variant", None)
        and all(isinstance(one, nn.Identity) for one in dropouts)
    )


def make_bfloat16_linears(
    modules: Sequence[nn.Linear], dtype: ComputeDtype
) -> Bfloat16Linears | None:
    """Copies of the linear layers that gain; None where there are none, or none are wanted.

    Args:
        modules: frozen linear layers.
        dtype: `bfloat16`, `float32`, or `auto`: bfloat16 on a processor with AMX or AVX512-BF16 and
            with memory for the copies.
    """
    on_cpu = [one for one in modules if one.weight.device.type == "cpu"]
    chosen = linears_that_gain(on_cpu, dtype)
    return Bfloat16Linears(chosen) if chosen else None


def linears_that_gain(modules: Sequence[nn.Linear], dtype: ComputeDtype) -> list[nn.Linear]:
    """The linear layers that a CPU multiplies in bfloat16, as `make_bfloat16_linears` has it."""
    chosen = [
        one for one in modules if one.in_features >= MIN_SIZE and one.weight.dtype == torch.float32
    ]
    if dtype == "auto":
        size = 2 * sum(module.weight.numel() for module in chosen)
        fits = size <= psutil.virtual_memory().available // 4
        return chosen if fits and _has_instructions() else []
    return chosen if dtype == "bfloat16" else []


def _has_instructions() -> bool:
    """Whether the processor multiplies in bfloat16: with either, about twice as fast or more."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
