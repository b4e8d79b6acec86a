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
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.batch import ChatBatch, make_batches
from retouch.representations.logprobs import max_logit_tokens, mean_by_chat, token_logprobs

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
    A patched run starts at the patched layer, from the source run's cached states.

    Args:
        editable: the base model.
        source: tokenized source chats.
        counterparts: the target counterpart of each, with the same response.
        batch_size: rows at a time.
        progress: called after every layer of every batch.
    """
    depth = editable.layout.depth
    every = range(depth)
    whole = Segment(editable, 0, depth - 1)
    total = torch.zeros(depth)
    used, done = 0, 0
    pad = editable.tokenizer.pad_token_id
    batches = make_batches(source, batch_size, pad, max_logit_tokens(editable))
    for batch in batches:
        clean = batch.counterpart(counterparts, pad)
        at, clean_at = batch.response_positions(), clean.response_positions()
        inputs = whole.capture_inputs(batch.ids)
        states = whole.forward(inputs, every)
        clean_states = {
            layer: found[clean_at]
            for layer, found in whole.forward(whole.capture_inputs(clean.ids), every).items()
        }

        def logprob(last: torch.Tensor, batch: ChatBatch = batch) -> torch.Tensor:
            """Mean log-probabilities of the responses `[chats]` from last states `[n, hidden]`."""
            logprobs = token_logprobs(whole.logits(last), batch.response_tokens())
            return mean_by_chat(logprobs, batch).cpu()

        start = logprob(states[depth - 1][at])
        gap = logprob(clean_states[depth - 1]) - start
        usable = gap > MIN_GAP
        for layer in every if bool(usable.any()) else ():
            hidden = states[layer].clone()
            hidden[at] = clean_states[layer]
            if layer < depth - 1:
                above = Segment(editable, layer + 1, depth - 1)
                rest = SegmentInputs(hidden, inputs.args[layer + 1 :])
                hidden = above.forward(rest, (depth - 1,))[depth - 1]
            total[layer] += ((logprob(hidden[at]) - start) / gap)[usable].clamp(-1, 1).sum()
            progress("causal patching", done + layer + 1, depth * len(batches))
        done += depth
        used += int(usable.sum())
    return Patching(tuple((total / max(used, 1)).tolist()), used)
