"""Interventions: changes of a frozen model's behaviour by steering vectors or prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from retouch.core.types import Message
from retouch.models.hooks import hidden_state, with_hidden_state


class Intervention:
    """A change of a frozen model's behaviour that can be switched off.

    Attributes:
        active: whether it acts; otherwise the model behaves as its base.
    """

    active: bool = True

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Register hooks on the decoder's blocks, where the intervention needs any."""

    def detach(self) -> None:
        """Remove the hooks."""

    def rewrite(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns that the model receives in place of `prompt`."""
        return prompt


class Steering(Intervention):
    r"""Vectors added to the outputs of blocks at every position: $h_l \leftarrow h_l + v_l$."""

    def __init__(self, vectors: Mapping[int, torch.Tensor]) -> None:
        self.vectors = dict(vectors)  # `[hidden]` by block, 0-based
        self._handles: list[RemovableHandle] = []

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Register a hook on every block that has a vector."""
        for layer, vector in self.vectors.items():
            self._handles.append(blocks[layer].register_forward_hook(partial(self._add, vector)))

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _add(self, vector: torch.Tensor, _: Any, __: Any, output: Any) -> Any:
        if not self.active:
            return output
        hidden = hidden_state(output)
        return with_hidden_state(output, hidden + vector.to(hidden.device, hidden.dtype))


class Prompting(Intervention):
    """Turns before a chat, such as a system prompt or demonstrations.

    `around` is a format of the last user turn, with `{prompt}` in place of its text.
    """

    def __init__(self, before: Sequence[Message] = (), around: str = "{prompt}") -> None:
        self.before, self.around = tuple(before), around

    def rewrite(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """The chat with the added turns; two system prompts are joined into one, at the front."""
        before, turns = list(self.before), list(prompt)
        system = [turns.pop(0)] if turns and turns[0].role == "system" else []
        added = [before.pop(0)] if before and before[0].role == "system" else []
        if added and system:
            added = [Message("system", f"{added[0].content} {system[0].content}")]
        for i in reversed(range(len(turns))):
            if turns[i].role == "user":
                turns[i] = Message("user", self.around.replace("{prompt}", turns[i].content))
                break
        return (*(added or system), *before, *turns)
