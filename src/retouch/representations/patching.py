"""Find the layers that determine a concept, by patching target states into source runs.

A concept can be read at every layer, so the accuracy of discriminators selects none. The criterion
is where the response changes when a state is replaced (causal tracing; Meng et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.types import Progress, no_progress
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import patch_activations, record_activations
from retouch.representations.batch import make_batches
from retouch.representations.logprobs import batch_logprob

MIN_GAP = 0.05  # nats a token; pairs with a smaller gap are not used


@dataclass(frozen=True)
class Patching:
    """How much of the target's response each layer's states recover.

    Attributes:
        recovery: for each layer the mean share of the gap in the response's log-probability that
            patching its output closes: 0 changes nothing, 1 is the clean run.
        pairs: the number of pairs that it is measured on.
    """

    recovery: tuple[float, ...]
    pairs: int

    def critical_layer(self, share: float = 0.9) -> int:
        """The first layer from which on at least `share` of the gap is closed."""
        below = [layer for layer, value in enumerate(self.recovery) if value < share]
        return min(below[-1] + 1 if below else 0, len(self.recovery) - 1)


@torch.no_grad()
def causal_trace(
    editable: EditableModel,
    source: Sequence[TokenizedChat],
    counterparts: Sequence[TokenizedChat],
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> Patching:
    """Patch the states of each target counterpart into its source run, one layer at a time.

    Chat i of both ends in the same response. The states at the last prompt token and along the
    response are patched together, since later response tokens depend on their own positions too.

    Args:
        editable: the base model.
        source: tokenized source chats.
        counterparts: the target counterpart of each, with the same response.
        batch_size: rows at a time.
        progress: called after every layer of every batch.
    """
    depth = editable.layout.depth
    total = torch.zeros(depth)
    used, done = 0, 0
    pad = editable.tokenizer.pad_token_id
    batches = make_batches(source, batch_size, pad)
    for batch in batches:
        clean = batch.counterpart(counterparts, pad)
        with record_activations(editable, range(depth)) as states:
            clean_logprob = batch_logprob(editable, clean).cpu()
        start = batch_logprob(editable, batch).cpu()
        gap = clean_logprob - start
        usable = gap > MIN_GAP
        if not bool(usable.any()):
            done += depth
            continue
        rows, positions = batch.response_positions()
        clean_at = clean.response_positions()
        for layer in range(depth):
            with patch_activations(editable, layer, rows, positions, states[layer][clean_at]):
                patched = batch_logprob(editable, batch).cpu()
            total[layer] += ((patched - start) / gap)[usable].clamp(-1, 1).sum()
            done += 1
            progress("causal patching", done, depth * len(batches))
        used += int(usable.sum())
    return Patching(tuple((total / max(used, 1)).tolist()), used)
