"""What acts on a model besides an adapter: a prompt that is added, states that are moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from retouch.core.types import Message


class Intervention:
    """Something that acts on a frozen model, and can be switched off.

    Attributes:
        active: whether it acts; off, the model is the base.
    """

    active: bool = True

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Hook into the decoder's blocks, if it has to."""

    def detach(self) -> None:
        """Let go of the blocks."""

    def rewrite(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns that the model is given in place of `prompt`."""
        return prompt


class Steering(Intervention):
    r"""Vectors added to the outputs of blocks at every position: $h_l \leftarrow h_l + v_l$.

    Attributes:
        vectors: `[hidden]` by block, 0-based.
    """

    def __init__(self, vectors: Mapping[int, torch.Tensor]) -> None:
        self.vectors = dict(vectors)
        self._handles: list[Any] = []

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Hook into the blocks that have a vector."""
        for layer, vector in self.vectors.items():
            self._handles.append(blocks[layer].register_forward_hook(self._adding(vector)))

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _adding(self, vector: torch.Tensor) -> Any:
        def add(_: Any, __: Any, out: Any) -> Any:
            if not self.active:
                return out
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = hidden + vector.to(hidden.device, hidden.dtype)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return add


class Prompting(Intervention):
    """Turns put before a chat, and words put around its last user turn.

    Attributes:
        before: the turns, such as a system prompt or demonstrations.
        around: text with `{prompt}` in it, for the last user turn.
    """

    def __init__(self, before: Sequence[Message] = (), around: str = "{prompt}") -> None:
        self.before, self.around = tuple(before), around

    def rewrite(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """The chat with the turns before it; two system prompts become one, and stand first."""
        before, turns = list(self.before), list(prompt)
        own = [turns.pop(0)] if turns and turns[0].role == "system" else []
        ours = [before.pop(0)] if before and before[0].role == "system" else []
        if ours and own:
            own = [Message("system", f"{ours[0].content} {own[0].content}")]
        system = own or ours
        for at in reversed(range(len(turns))):
            if turns[at].role == "user":
                text = self.around.replace("{prompt}", turns[at].content)
                turns[at] = Message("user", text)
                break
        return (*system, *before, *turns)
