"""Where a concept is decided: causal patching of wanted states into unwanted runs.

Discriminators read a concept at every layer, so their accuracy chooses nothing. What counts is
where the behaviour flips when a state is put in place of another (causal tracing; Meng et al.,
NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retouch.concepts.render import Rendered
from retouch.models.load import LoadedModel
from retouch.models.segment import replaced
from retouch.representations.batch import make_batches
from retouch.representations.capture import record
from retouch.representations.likelihood import batch_log_probability


@dataclass(frozen=True)
class Patching:
    """How far the wanted reply comes back when the wanted states are put in, layer by layer.

    Attributes:
        recovery: per block, the mean share of the gap in the wanted reply's log-probability that
            patching its output closes: 0 changes nothing, 1 is the wanted run.
        pairs: how many pairs this rests on.
    """

    recovery: tuple[float, ...]
    pairs: int

    def decisive(self, share: float = 0.9) -> int:
        """The first block from which on at least `share` of the gap is closed."""
        below = [i for i, r in enumerate(self.recovery) if r < share]
        return min(below[-1] + 1 if below else 0, len(self.recovery) - 1)


@torch.no_grad()
def trace(
    loaded: LoadedModel, source: Sequence[Rendered], target: Sequence[Rendered], size: int = 32
) -> Patching:
    """Patch the states of each target row into its source row, one block at a time.

    Row i of both ends in the same reply. The states at the decision and along the reply are put in
    together, since a reply that has begun is decided at its own positions too.
    """
    depth = loaded.layout.depth
    total = torch.zeros(depth)
    used = 0
    pad = loaded.tokenizer.pad_token_id
    for batch in make_batches(source, size, pad):
        twin = batch.twin(target, pad)
        with record(loaded, range(depth)) as states:
            wanted = batch_log_probability(loaded, twin)
        start = batch_log_probability(loaded, batch)
        gap = wanted - start
        moved = gap > 0.05  # without a gap there is nothing to close
        if not bool(moved.any()):
            continue
        rows, at = batch.reply()
        twin_rows, twin_at = twin.reply()
        for layer in range(depth):
            with replaced(loaded, layer, rows, at, states[layer][twin_rows, twin_at]):
                patched = batch_log_probability(loaded, batch)
            total[layer] += ((patched - start) / gap)[moved].clamp(-1, 1).sum()
        used += int(moved.sum())
    return Patching(tuple((total / max(used, 1)).tolist()), used)


@torch.no_grad()
def flipped_replies(
    loaded: LoadedModel,
    source: Sequence[Sequence[int]],
    target: Sequence[Sequence[int]],
    layer: int,
    max_new_tokens: int = 24,
) -> list[str]:
    """Greedy replies to the source prompts with the target's last state put in at one block."""
    replies: list[str] = []
    tokenizer: Any = loaded.tokenizer
    for ours, theirs in zip(source, target, strict=True):
        with record(loaded, [layer]) as states:
            loaded.model(input_ids=torch.tensor([list(theirs)]), use_cache=False)
        state = states[layer][:, -1]
        last = torch.tensor([len(ours) - 1])
        with replaced(loaded, layer, torch.tensor([0]), last, state):
            out = loaded.model.generate(
                input_ids=torch.tensor([list(ours)]),
                attention_mask=torch.ones(1, len(ours), dtype=torch.long),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        replies.append(tokenizer.decode(out[0, len(ours) :], skip_special_tokens=True).strip())
    return replies
